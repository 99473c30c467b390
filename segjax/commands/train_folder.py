"""The verb that trains on a folder: it looks, plans, writes a script, and runs it.

What is trained is the script, by its own verb `train`, so that plan and script cannot differ.
"""

import ast
import re
import shlex
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import rich
import tyro

from segjax.commands.audit import words
from segjax.commands.command import run_script
from segjax.commands.cost import step_in_shapes
from segjax.commands.look import look
from segjax.commands.networks import network
from segjax.commands.plan import Plan, make_plan, table
from segjax.commands.run import may_clear, write_whole
from segjax.commands.script import write
from segjax.data.coding import Coding
from segjax.data.folder import Folder
from segjax.data.pictures import Colours, Ranges, Values
from segjax.errors import SegjaxError
from segjax.inference import memory
from segjax.inference.predict import make_predict
from segjax.training import sharding
from segjax.training.cost import step_cost

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
            subfolders of both or lists train.txt and val.txt; else the last fifth is held out.
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
            found = look(
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
    given = ["segjax", "train", str(options["folder"].absolute())]
    for name, value in options.items():
        if name in ("folder", "run", "plan_only", "restart", "yes") or value == plain[name]:
            continue
        given += [f"--{name}", *(words(value) if value is not True else ())]
    return shlex.join(given)


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
            "go on, edit the script, move it away to plan anew, or name another folder with --run."
        )
    differs = steps is not None and f" --steps {steps}" not in noted[1]
    return ["--steps", str(steps)] if differs else []


def _check_run(run: Path, script: Path) -> None:
    if (run / "recipe.json").exists():
        raise SegjaxError(
            f"{run}: holds a run, but the script that trained it is not there ({script}). Put it "
            "back, or name another folder with --run."
        )


def _fitted(plan: Plan) -> Plan:
    """The plan with as many pictures a step as the memory holds, by compiling its script.

    Raises:
        SegjaxError: it does not hold one for each device.
    """
    mesh = sharding.make_mesh()
    room = memory.SHARE * memory.left()
    while (need := _memory(plan, mesh)) > room:
        devices = mesh.shape["data"]
        if plan.batch_size <= devices:
            raise SegjaxError(
                f"One picture a device of {plan.crop[0]}×{plan.crop[1]} pixels takes "
                f"{need / _GIB:.1f} GiB, more than the {room / _GIB:.1f} GiB that are free. Take a "
                "smaller network (--model), or cut the pictures into parts."
            )
        half = devices * max(1, plan.batch_size // 2 // devices)
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
