"""The manual: docs/man/*.8, made of the command tree, of the tables `explain` uses, and of texts written by hand.

What a command, an argument or an option is, comes from click alone, so a page says what --help says. generate.py puts
pages together, roff.py writes them, pages.py and examples.py hold what is written by hand. Nothing here runs in a node.

    python -m replicator.cli.manual [FOLDER]
"""
