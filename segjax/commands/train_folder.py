"""The verb that trains on a folder: it looks, plans, writes a script, and runs it.

What is trained is the script, by its own verb `train`, so that plan and script cannot differ.
"""

import ast
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import rich
import tyro

from segjax.commands.audit import CLASS_FILES, find_splits, in_options, palette_of
from segjax.commands.command import run_script
from segjax.commands.cost import step_in_shapes
from segjax.commands.networks import network
from segjax.commands.plan import Found, Plan, Where, make_plan, table
from segjax.commands.run import may_clear, write_whole
from segjax.commands.script import write
from segjax.data import coding
from segjax.data.coding import Coding
from segjax.data.folder import Folder
from segjax.data.labels import voc_palette
from segjax.data.pictures import IGNORE, Colours, Ranges, Values, label_table
from segjax.data.survey import are_grey, survey, tally_masks
from segjax.errors import SegjaxError
from segjax.inference import memory
from segjax.inference.predict import make_predict
from segjax.training import sharding
from segjax.training.train import step_cost

_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation")
_HELD_OUT = 5  # one in so many, where no split is named
_GIB = 2**30


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def train_folder(
    folder: Path,
    *,
    model: str = "unet",
    classes: tuple[str, ...] = (),
    steps: int | None = None,
    run: Path | None = None,
    values: Values = (),
    colours: Colours = (),
    instances: bool = False,
    channels: int | None = None,
    ranges: Ranges = (),
    images: str = "images",
    masks: str = "masks",
    endings: tuple[str, str] = ("", ""),
    plan_only: bool = False,
    restart: bool = False,
    yes: bool = False,
) -> None:
    """Look at a folder of pictures and masks, plan a training, write it as a script, and train.

    The plan is printed with its reasons, and lies as RUN.py beside the run folder RUN: edit it and
    start it by python RUN.py train, or by this command again, which takes the script that is there.

    Args:
        folder: With images/ and masks/ (or --images and --masks), paired by stem; train and val are
            subfolders of both or lists train.txt and val.txt, else every fifth picture is held out.
        model: unet, unetplusplus, fcn32s, fcn16s, fcn8s, fcn-alexnet, fcn-googlenet, setr-naive,
            setr-pup or setr-mla.
        classes: Names, the background's first; by default those of classes.txt or labels.txt.
        steps: Of training.
        run: The run folder; by default runs/ and the folder's name.
        values: Values of the masks, each followed by its class, 255 = ignore: 11 255.
        colours: Colours of the masks, red, green and blue, each followed by its class: 255 0 0 1.
        instances: The masks hold numbers of objects, 0 = background.
        channels: Of the pictures: 1 grey, 3 RGB, 4 RGBA; with --ranges any number.
        ranges: Lowest and highest of the pictures' values, once or for each channel.
        images: The folder of pictures within the folder.
        masks: The folder of masks within it; it may be the same.
        endings: What ends the names of pictures and of masks: "" _mask for a.jpg and a_mask.png.
        plan_only: Print the plan and write the script, and train nothing.
        restart: Remove the run in the folder, after a question, and train the script anew.
        yes: Do not ask.

    Raises:
        SegjaxError: what is wrong with the folder or the options.
    """
    asked = _command(dict(locals()))
    chosen = network(model)
    run = run or Path("runs") / folder.absolute().name
    script = run.with_name(f"{run.name}.py")
    if script.exists():
        more = _options_beside(script, asked, steps)
        print(f"{script} is there: it is taken as it stands, and nothing is planned anew.")
    else:
        _check_run(run, script)
        more = []
        console = rich.get_console()
        with console.status(f"looking at {folder}"):
            found = _look(
                partial(Folder, folder, endings=endings, ranges=ranges),
                places=(images, masks),
                names=classes,
                channels=channels,
                told=Coding(0, "as told", values, colours, instances),
            )
        plan = make_plan(
            found,
            chosen,
            platform=jax.default_backend(),
            devices=jax.device_count(),
            steps=steps,
        )
        with console.status("compiling, to see what fits the memory"):
            plan = _fitted(plan)
        console.print(table(plan, f"{chosen.title} on {folder}"))
        script.parent.mkdir(parents=True, exist_ok=True)
        write_whole(script, write(plan, name=run.name, command=asked).rstrip("\n"))
        print(f"The plan is written to {script}: edit it and start it by python {script} train.")
    if plan_only:
        return
    if restart and may_clear(run, yes=yes):
        more += ["--restart", "--yes"]
    run_script(script, ["train", "--run", str(run), *more])


def _command(options: dict[str, Any]) -> str:
    """The command in its shortest form, less what does not bear on the plan."""
    plain: Any = train_folder.__kwdefaults__
    words = ["segjax", "train", str(options["folder"].absolute())]
    for name, value in options.items():
        if name in ("folder", "run", "plan_only", "restart", "yes") or value == plain[name]:
            continue
        words += [f"--{name}", *_words(value)]
    return shlex.join(words)


def _words(value: Any) -> list[str]:
    if value is True:
        return []
    return [w for x in value for w in _words(x)] if isinstance(value, tuple) else [str(value)]


def _options_beside(script: Path, asked: str, steps: int | None) -> list[str]:
    """What a script that is there is given of the options asked for.

    Raises:
        SegjaxError: they are others than those by which it was planned.
    """
    try:
        told = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    except (SyntaxError, UnicodeDecodeError) as error:
        raise SegjaxError(f"{script}: no Python that can be run: {error}. Mend it.") from error
    noted = re.search(r"Planned by: (.*)", " ".join(told.split()))
    if noted is None:
        return ["--steps", str(steps)] if steps else []
    without = r" --steps \d+"
    asked = asked.replace("\\", "/").replace('"', "'")
    if re.sub(without, "", noted[1]) != re.sub(without, "", " ".join(asked.split())):
        raise SegjaxError(
            f"{script} was planned by\n  {noted[1]}\nnot by\n  {asked}\nGive the same options to "
            "go on, edit the script, remove it to plan anew, or name another folder with --run."
        )
    differs = steps is not None and f" --steps {steps}" not in noted[1]
    return ["--steps", str(steps)] if differs else []


def _check_run(run: Path, script: Path) -> None:
    if (run / "recipe.json").exists():
        raise SegjaxError(
            f"{run}: holds a run, but the script that trained it is not there ({script}). Put it "
            "back, or name another folder with --run."
        )


def _look(
    make: Callable[..., Folder],
    *,
    places: tuple[str, str],
    names: Sequence[str],
    channels: int | None,
    told: Coding,
) -> Found:
    """What is in the folder, and how it is to be read.

    Args:
        make: the folder, given classes and palette.
        places: of pictures and of masks within it.
        names: of the classes, if any are told.
        channels: of the pictures, if told.
        told: how masks are read, if that is told.

    Raises:
        SegjaxError: what is wrong with it, in options of the command line.
    """
    try:
        # The classes are not known yet: any value may be one.
        any_value = tuple(map(str, range(IGNORE)))
        folder = make(classes=any_value, palette=voc_palette(IGNORE), channels=channels or 3)
        train, val, why = _split(folder, *places)
        names = tuple(names) or _names_beside(folder.root)
        both = [replace(folder, **where._asdict()) for where in (train, val)]
        found = _coding(both, len(names) or None, told)
        names = names or _default_names(found)
        grey = channels is None and not folder.ranges and are_grey(both[0])
        folder = make(
            classes=names,
            palette=palette_of(found.colours, len(names)),
            channels=1 if grey else folder.channels,
            values=found.values,
            colours=found.colours,
            instances=found.instances,
        )
        looked = survey(
            {
                name: replace(folder, **where._asdict())
                for name, where in (("train", train), ("val", val))
            }
        )
        return Found(folder, train, val, why, found.why, grey, looked)
    except SegjaxError as error:
        raise SegjaxError(in_options(str(error))) from error


def _split(folder: Folder, images: str, masks: str) -> tuple[Where, Where, str]:
    """Which examples are trained on and which are held out, and how that was decided."""
    root = folder.root
    if not _exists(root, images):  # train/images instead of images/train
        inner = {
            name: Where(images=f"{name}/{images}", masks=_masks(root, f"{name}/", images, masks))
            for name in (*_TRAIN, *_VAL)
            if _exists(root, f"{name}/{images}")
        }
        of_train = [inner[name] for name in _TRAIN if name in inner]
        of_val = [inner[name] for name in _VAL if name in inner]
        if of_train and of_val:
            why = f"the folders {of_train[0].images} and {of_val[0].images}"
            return of_train[0], of_val[0], why
        if of_train:
            return _hold_out(replace(folder, **of_train[0]._asdict()), of_train[0])
    masks = _masks(root, "", images, masks)
    splits = find_splits(root / images, root)
    trained = next((name for name in _TRAIN if name in splits), None)
    held_out = next((name for name in _VAL if name in splits), None)
    if trained and held_out:
        train, val = (Where(name, images=images, masks=masks) for name in (trained, held_out))
        return train, val, f"the splits {trained} and {held_out} of the folder"
    if held_out:
        raise SegjaxError(
            f"{root}: there is a split {held_out}, but none to train on. Name that one train: "
            "a subfolder of both, or a list train.txt."
        )
    where = Where(trained, images=images, masks=masks)
    if not trained and _holds_folders_only(root / images):  # one for each city, patient, …
        where = Where(images=f"{images}/*", masks=f"{masks}/*")
    return _hold_out(replace(folder, **where._asdict()), where)


def _hold_out(folder: Folder, where: Where) -> tuple[Where, Where, str]:
    """The last fifth is held out: neighbours, as frames of a film, stay on one side."""
    pairs = len(folder.pairs)
    if pairs < 2:
        raise SegjaxError(
            f"{folder.root}: one picture only. Expected at least two with masks, one to train on "
            "and one to hold out; cut a large one into parts."
        )
    held_out = max(1, pairs // _HELD_OUT)
    train, val = (where._replace(part=part) for part in ((None, -held_out), (-held_out, None)))
    of = f" of {where.split}" if where.split else ""
    return train, val, f"no split val is there: the last fifth{of} by name is held out"


def _exists(root: Path, place: str) -> bool:
    return "*" in place or (root / place).exists()


def _holds_folders_only(folder: Path) -> bool:
    held = [path for path in folder.glob("*") if not path.name.startswith(".")]
    return bool(held) and all(path.is_dir() for path in held)


def _masks(root: Path, before: str, images: str, masks: str) -> str:
    """The folder of masks: where there is none of the name, the only one of the pictures' stems."""
    top = root / before
    if _exists(top, masks) or not (top / images).is_dir():
        return before + masks
    stems = _stems(top / images)
    others = [path for path in sorted(top.iterdir()) if path.is_dir() and path.name != images]
    found = [path.name for path in others if stems & _stems(path)]
    if len(found) > 1:
        raise SegjaxError(
            f"{top}: several folders may hold the masks: {', '.join(found)}. Say which: --masks "
            f"{found[0]}."
        )
    return before + (found[0] if found else masks)


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*") if not path.name.startswith(".")}


def _coding(sources: Sequence[Folder], names: int | None, told: Coding) -> Coding:
    """How the masks are read: as told, or as is found from what they store."""
    if told.instances:
        return told._replace(classes=2, why="the masks number objects, as told")
    if told.colours:
        labels = [label for _, label in told.colours if label != IGNORE]
        return told._replace(classes=names or max(labels, default=0) + 1, why="colours as told")
    tally = tally_masks(sources)
    if not tally.coloured and tally.contradicts_itself:
        tally = tally_masks(sources, coloured=True)
    if not told.values:
        return coding.propose(tally, names=names)
    held = label_table(IGNORE, told.values)[sorted(tally.pixels)]
    classes = int(held[held != IGNORE].max(initial=0)) + 1
    return told._replace(classes=names or classes, why="values as told")


def _names_beside(root: Path) -> tuple[str, ...]:
    """The class names in a file of the folder, one a line."""
    for name in CLASS_FILES:
        if (path := root / f"{name}.txt").is_file():
            lines = path.read_text("utf-8-sig", errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return ()


def _default_names(found: Coding) -> tuple[str, ...]:
    if found.classes == 2:
        return ("background", "object" if found.instances else "foreground")
    return tuple(f"class_{label}" for label in range(found.classes))


def _fitted(plan: Plan) -> Plan:
    """The plan with as many pictures a step as the memory holds, by compiling its script.

    Raises:
        SegjaxError: it does not hold one for each device.
    """
    mesh = sharding.make_mesh()
    room = memory.SHARE * memory.left()
    while (need := _memory(plan, mesh)) > room:
        if plan.batch_size <= mesh.size:
            raise SegjaxError(
                f"One picture a device of {plan.crop[0]}×{plan.crop[1]} pixels takes "
                f"{need / _GIB:.1f} GiB, more than the {room / _GIB:.1f} GiB that are free. Take a "
                "smaller network (--model), or cut the pictures into parts."
            )
        half = mesh.size * max(1, plan.batch_size // 2 // mesh.size)
        plan = plan.smaller(half, f"more than {half} do not fit the memory")
    why = f"{plan.why['batch_size']}; takes {need / _GIB:.1f} of {room / _GIB:.1f} GiB"
    return plan.smaller(plan.batch_size, why)


def _memory(plan: Plan, mesh: Any) -> float:
    """Bytes that a step of training or of evaluation takes, the larger of the two, per device."""
    recipe = _recipe(write(plan, name="plan", command=""))
    step, state, batch = step_in_shapes(recipe, mesh)
    found = step_cost(step, state, batch)
    training = found.arguments + found.temporaries + found.outputs
    largest = max(plan.buckets or (plan.canvas,), key=np.prod)
    dtype = np.float32 if plan.found.folder.ranges else np.uint8
    shape = (plan.batch_size, *largest, plan.found.folder.channels)
    images = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.split(mesh))
    predict: Any = make_predict(recipe.model(), normalise=recipe.normalise)
    held = predict.lower(state.variables, images).compile().memory_analysis()
    return max(training, float(held.temp_size_in_bytes + held.output_size_in_bytes))


def _recipe(text: str) -> Any:
    """The recipe of a script, without its file."""
    module = ModuleType("plan")
    exec(compile(text, "plan", "exec"), vars(module))  # what `write` has written just now
    (cls,) = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
    return cls()
