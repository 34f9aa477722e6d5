"""`plaudit launch`: the processes of a run that torchrun does not start."""

import sys
from typing import Annotated

import typer

from plaudit.cli.stages import Overrides, RecipePath

commands = typer.Typer(help="Start what a run needs beside its own process: servers that sample, workers of Ray.")


@commands.command()
def vllm(
    recipe: RecipePath,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]... [-- OPTION...]", help="Recipe keys to change; options of vLLM after --."
        ),
    ] = None,
    python: Annotated[
        str, typer.Option(metavar="PYTHON", help="The interpreter of the environment that has vLLM.")
    ] = sys.executable,
    host: Annotated[str, typer.Option(help="Address to listen on: whoever reaches it can use it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="vLLM draws by itself, from a seed a reply: other replies than in-process.")
    ] = False,
    restarts: Annotated[int, typer.Option(min=0, help="How often in a row it is started again when it dies.")] = 3,
) -> None:
    """Serve the SFT model of a recipe's run to it (rollout.engine=vllm), as soon as SFT has ended."""
    from plaudit.launch.vllm import Serving, serve
    from plaudit.stages.recipe import load_recipe

    given = list(overrides or ())
    first = next((place for place, word in enumerate(given) if word.startswith("-")), len(given))
    serve(load_recipe(recipe, given[:first]), Serving(python, host, port, seeds, restarts, tuple(given[first:])))


@commands.command()
def ray(
    recipe: RecipePath,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the run.")] = 1,
    restarts: Annotated[int, typer.Option(min=0, help="How often they are started again when one dies.")] = 3,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster that is there (auto: this machine's); else one on this machine.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU for each worker.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier launch ended.")] = False,
) -> None:
    """Run a recipe as workers of Ray Train."""
    from plaudit.launch.ray import Cluster, launch

    launch(recipe, overrides or (), Cluster(workers, restarts, address, gpu, resume))
