"""The pages of docs/ that are generated from tables are current."""

import pytest

from tests.testing.doctables import DOCS, PAGES


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_matches_the_table_in_the_code(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run: python -m tests.testing.doctables"
