"""The command line: each command parses, imports one stage, calls it, and says what to type next.

Standard output holds answers and `--json` only; everything else goes to standard error. Exit codes: 0 done, 1 a fault
of the program, 2 a mistake that the person can put right, 130 stopped by Ctrl-C. Only click is loaded for `--help`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kerasllm import __version__
from kerasllm.command_parts import COMMAND, common_options, read_lines, repeated, report, say_next
from kerasllm.environment import UNUSED_BY_COMMANDS, load_tensorflow
from kerasllm.errors import UserError


class _InOrder(click.Group):
    """Lists its commands in the order in which they are used, which is the order of this file."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        arguments: without the program's name; by default those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    if debug:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    elif not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        return commands.main(arguments, prog_name=COMMAND, standalone_mode=False) or 0
    except click.Abort as abort:
        error: BaseException = abort.__cause__ or abort
    except Exception as any_error:
        error = any_error
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    message, code = _explain(error)
    click.echo(message, err=True)
    return code


def _explain(error: BaseException) -> tuple[str, int]:
    """Returns the line that the person reads, and the exit code."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        advice = f" (see `{context.command_path} --help`)" if context else ""
        return f"error: {' '.join(error.format_message().split())}{advice}", error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return str(error) or "stopped; type the same command again to go on", 130
    words = " ".join(str(error).split())
    what = f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
    return f"error: unexpected {what}; run again with --debug for the traceback", 1


@click.group(cls=_InOrder, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=COMMAND)
@click.pass_context
def commands(context: click.Context) -> None:
    """From raw text to a model that answers on a server.

    \b
    kerasllm train translate/dates_tiny --run-dir runs/dates
    kerasllm evaluate runs/dates
    kerasllm predict runs/dates "5. März 2021"
    kerasllm export runs/dates --to saved_models/dates
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the recipes that come with the package.

    \b
    kerasllm recipes
    kerasllm recipes copy translate/dates_tiny my_dates.yaml
    """
    if context.invoked_subcommand is not None:
        return
    from kerasllm.recipe import list_recipes

    found = list_recipes()
    width = max((len(recipe.name) for recipe in found), default=0)
    for recipe in found:
        click.echo(f"{recipe.name:<{width}}  {recipe.purpose}")
    tiny = [recipe.name for recipe in found if recipe.name.endswith("_tiny")]  # needs no data files
    name = tiny[0] if tiny else "NAME"
    say_next("train", name, "--run-dir", f"runs/{name.rpartition('/')[2]}")
    say_next("recipes", "copy", name, instead="to change one:")


@recipes.command()
@click.argument("name")
@click.argument("to", type=click.Path(path_type=Path), default=".")
def copy(name: str, to: Path) -> None:
    """Copy the recipe NAME to the file or directory TO, to change it.

    \b
    kerasllm recipes copy translate/dates_tiny my_dates.yaml
    """
    from kerasllm.recipe import copy_recipe

    path = copy_recipe(name, to)
    click.echo(path)
    say_next("train", str(path), "--run-dir", f"runs/{path.stem}")


@commands.command()
@click.argument("table", type=click.Path(path_type=Path), required=False)
@click.option("--to", type=click.Path(path_type=Path), help="The recipe; by default the table's name with .yaml.")
@click.option("--text", metavar="COLUMN", help="Holds the text.")
@click.option("--other-text", metavar="COLUMN", help="Holds the other text of a pair.")
@click.option("--label", metavar="COLUMN", help="Holds what is to be told from the text.")
@click.option("--pretrained", metavar="SOURCE", help="Weights: a run, a directory, hf:OWNER/NAME, preset:NAME.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to standard output as JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def new(as_json: bool, **options: Any) -> None:
    """Write a recipe that trains a classifier, a tagger or a reader on TABLE.

    TABLE is a csv, tsv, jsonl or parquet file with a column of texts and one of labels. Which these are is guessed,
    shown, and can be said. Or it has a word a line, with its tag in the last column (CoNLL), or questions about texts
    (the json of SQuAD). Without TABLE the recipe gives sentences vectors by the encoder of --pretrained as it is.

    \b
    kerasllm new reviews.csv
    kerasllm new entities.conll
    kerasllm new questions.json --pretrained hf:sentence-transformers/all-MiniLM-L6-v2
    kerasllm new reviews.csv --text comment --label stars --to stars.yaml
    kerasllm new reviews.csv --pretrained hf:sentence-transformers/all-MiniLM-L6-v2
    kerasllm new --pretrained hf:sentence-transformers/all-MiniLM-L6-v2 --to sentences.yaml
    """
    from kerasllm.stages.new import new as new_stage

    result = new_stage(**options)
    report(result, as_json)
    path = result["recipe"]
    say_next("train", path, "--run-dir", f"runs/{Path(path).stem}")


@commands.command()
@click.argument("recipe")
@common_options
def prepare(recipe: str, overrides: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    """Read, clean and encode the data of RECIPE: texts become tokens, and files of pictures pixels.

    RECIPE is a file or a name from `kerasllm recipes`. `train` does this by itself; by hand, it shows what the cleaning
    dropped. The result is kept under a hash of data and settings, in $KERASLLM_CACHE or ~/.cache/kerasllm.

    \b
    kerasllm prepare translate/multi30k_small --data-dir data
    """
    from kerasllm.recipe import load_recipe
    from kerasllm.stages.prepare import prepare as prepare_stage

    loaded = load_recipe(recipe, overrides)
    report(prepare_stage(loaded, data_dir), as_json)
    run_dir = f"runs/{loaded.name.rpartition('/')[2]}"
    say_next("train", recipe, "--run-dir", run_dir, *repeated(overrides, data_dir))


@commands.command()
@click.argument("recipe")
@click.option("--to", type=click.Path(path_type=Path), default=Path("preview.png"), show_default=True, help="PNG file.")
@common_options
def preview(recipe: str, to: Path, overrides: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    """Draw training pictures of RECIPE, and what augmentation makes of them.

    \b
    kerasllm preview classify_image/digits_tiny --to digits.png
    """
    from kerasllm.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    load_tensorflow(without=UNUSED_BY_COMMANDS)
    from kerasllm.stages.preview import preview as preview_stage

    report(preview_stage(loaded, to, data_dir), as_json)
    run_dir = f"runs/{loaded.name.rpartition('/')[2]}"
    say_next("train", recipe, "--run-dir", run_dir, *repeated(overrides, data_dir))


@commands.command()
@click.argument("recipe")
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Where all of the run is kept.")
@common_options
def train(recipe: str, run_dir: Path, overrides: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    """Train the model of RECIPE, or go on with a run.

    RECIPE is a file or a name from `kerasllm recipes`. An existing run goes on where it stopped.

    \b
    kerasllm train translate/dates_tiny --run-dir runs/dates
    kerasllm train translate/dates_tiny --run-dir runs/wide --set model.hidden_dim=256 --set seed=2
    """
    from kerasllm.cluster import read_cluster
    from kerasllm.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    read_cluster()  # its mistakes are answered before TensorFlow loads
    load_tensorflow(without=UNUSED_BY_COMMANDS)
    from kerasllm.stages.train import train as train_stage

    report(train_stage(loaded, run_dir, data_dir), as_json)
    if loaded.data.splits:
        say_next("evaluate", str(run_dir), *repeated((), data_dir))
    else:
        say_next("export", str(run_dir), "--to", f"saved_models/{run_dir.resolve().name}")


@commands.command()
@click.argument("recipe")
@click.option("--over", multiple=True, required=True, metavar="SECTION.KEY=A,B,...", help="Values to be compared.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trials for each setting.")
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Where all trials are kept.")
@click.option("--target", metavar="METRIC=NUMBER", help="Also show the steps and seconds until it is reached.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trials that run at once.")
@common_options
def compare(recipe: str, as_json: bool, **options: Any) -> None:
    """Train RECIPE with several settings, and show them side by side.

    All values of all --over options are combined, and each combination is trained with each seed, in a process of its
    own. Keys with + between them change together, and have a list for each choice. Trials that have ended are not run
    again, so the same command goes on after Ctrl-C, or with more seeds.

    \b
    kerasllm compare translate/dates_tiny --over model.dropout=0,0.1 --seeds 3 --run-dir runs/dropout
    kerasllm compare mine.yaml --run-dir runs/ways \\
        --over 'tuning+training.peak_learning_rate=[{name: full}, 0.0001],[{name: lora, rank: 8}, 0.0005]'
    kerasllm compare translate/dates_tiny --over training.peak_learning_rate=0.001,0.004 \\
        --over model.num_layers=1,2 --set training.train_steps=500 --target loss=0.5 --run-dir runs/rates
    """
    from kerasllm.stages.compare import compare as compare_stage

    result = compare_stage(recipe, num_seeds=options.pop("seeds"), **options)
    report(result, as_json)
    click.echo(f"next: {shlex.join(['tensorboard', '--logdir', str(result['logs'])])}", err=True)
    if result["failed"]:
        raise UserError(f"{len(result['failed'])} of the trials failed; the same command tries them again")


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@common_options
def evaluate(run: Path, split: str, overrides: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    """Measure how good the answers of the trained RUN are.

    They are written, beside the references, to RUN/predictions/SPLIT.jsonl.

    \b
    kerasllm evaluate runs/dates
    kerasllm evaluate runs/dates --split validation --set generation.beam_size=1 --json
    """
    load_tensorflow(without=UNUSED_BY_COMMANDS)
    from kerasllm.stages.evaluate import evaluate as evaluate_stage

    report(evaluate_stage(run, split, data_dir, overrides), as_json)
    say_next("export", str(run), "--to", f"saved_models/{run.resolve().name}")


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--input", "file", type=click.File("rb"), help="Read the texts from a file, one a line.")
@common_options
def predict(
    run: Path, texts: Sequence[str], file: Any, overrides: Sequence[str], data_dir: Path | None, as_json: bool
) -> None:
    """Answer each TEXT with the trained RUN.

    Without a TEXT they are read from standard input, one a line. Answers go to standard output, in the same order.

    \b
    kerasllm predict runs/dates "5. März 2021" "March 5th, 2021"
    kerasllm predict runs/dates --input dates.txt > answers.txt
    """
    if texts and file:
        raise UserError("texts were given both as arguments and by --input; leave one of them out")
    texts = texts or read_lines(file or click.get_binary_stream("stdin"), file.name if file else "standard input")
    load_tensorflow(without=UNUSED_BY_COMMANDS)
    from kerasllm.stages.predict import predict as predict_stage

    answers = predict_stage(run, texts, overrides, data_dir)
    if as_json:
        report({"predictions": answers}, as_json)
    else:
        for answer in answers:
            _, shown, *_ = answer.values()  # the text that was asked comes first
            click.echo(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))
    say_next("export", str(run), "--to", f"saved_models/{run.resolve().name}")


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("picture")
@click.option("--to", type=click.Path(path_type=Path), default=Path("why.png"), show_default=True, help="PNG file.")
@click.option("--label", help="Ask for this label, and not for the likeliest.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to standard output as JSON.")
def why(run: Path, picture: str, to: Path, label: str | None, as_json: bool) -> None:
    """Draw which places of PICTURE count for the label that RUN gives it.

    \b
    kerasllm why runs/digits seven.png --to why.png
    """
    load_tensorflow(without=UNUSED_BY_COMMANDS)
    from kerasllm.stages.why import why as why_stage

    report(why_stage(run, picture, to, label), as_json)


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), required=True, help="saved_models/NAME, for its next version.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["saved_model", "huggingface"]),
    default="saved_model",
    show_default=True,
    help="For huggingface --to is a new directory, which `transformers` loads.",
)
@common_options
def export(run: Path, to: Path, form: str, overrides: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    """Publish the trained RUN as a SavedModel for TF Serving.

    It becomes the next version in the directory that --to names, after it gave the same answers in a fresh process.

    \b
    kerasllm export runs/dates --to saved_models/dates
    kerasllm export runs/dates --to saved_models/dates_greedy --set generation.beam_size=1
    kerasllm export runs/reviews --to reviews_bert --format huggingface
    """
    load_tensorflow(without=UNUSED_BY_COMMANDS)
    from kerasllm.serving import saved_model
    from kerasllm.stages.export import export as export_stage

    if form == "huggingface":
        from kerasllm.stages.export import export_huggingface

        if overrides:
            raise UserError("--set changes the search of a SavedModel, and huggingface has none; leave it out")
        report(export_huggingface(run, to, data_dir), as_json)
        return
    result = export_stage(run, to, overrides, data_dir)
    report(result, as_json)
    asked = "PICTURE" if "image_bytes" in result["inputs"] else "TEXT"
    script = min(os.path.relpath(saved_model.__file__), saved_model.__file__, key=len)
    click.echo(f"next: {shlex.join(['python', script, str(to), asked])}", err=True)
