"""farstripe completion: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from replicator.core.errors import BadInput

_HOW = {
    "bash": "farstripe completion bash > /etc/bash_completion.d/farstripe",
    "zsh": "farstripe completion zsh > /usr/local/share/zsh/site-functions/_farstripe",
    "fish": "farstripe completion fish > ~/.config/fish/completions/farstripe.fish",
}


@click.command(epilog="Install it, for example: " + _HOW["bash"])
@click.argument("shell", type=click.Choice(sorted(_HOW)))
def completion(shell: str) -> None:
    """Print the completion script for SHELL."""
    cls = get_completion_class(shell)
    if cls is None:
        raise BadInput(f"no completion for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(cls(root, {}, "farstripe", "_FARSTRIPE_COMPLETE").source())
