"""What a compiled program says, its roofline, and the data sheets."""

import jax
import pytest

from segjax.errors import SegjaxError
from segjax.training import cost, devices

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %permute = bf16[4,8]{1,0:T(8,128)} collective-permute(%x), channel_id=5
  ROOT %t = (s32[], f32[8]) tuple(%i, %permute)
}

ENTRY %main.3 (p0: f32[64]) -> f32[64] {
  %p0 = f32[64]{0:T(128)} parameter(0)
  %p1 = f32[3,3]{1,0:T(8,128)} parameter(1)
  %r = (f32[64]{0:T(128)S(1)}, f32[3,3]{1,0}) all-reduce(%p0, /*index=1*/%p1), to_apply=%add
  %g = (f32[64]{0}, f32[256]{0}) all-gather-start(%p0), dimensions={0}
  %done = f32[256]{0} all-gather-done(%g)
  %loop = (s32[], f32[8]) while(%init), condition=%cond.2, body=%body.1, \
backend_config={"known_trip_count":{"n":"24"}}
  ROOT %out = f32[64]{0:T(128)} copy(%p0), metadata={op_name="all-reduce(x)"}
}
"""


def test_collectives_count_once_and_in_a_loop_as_often_as_it_runs():
    assert cost.collectives(PROGRAM) == {
        "all-reduce": (1, 4 * (64 + 9)),
        "all-gather": (1, 4 * 64),
        "collective-permute": (24, 24 * 2 * 32),
    }


def test_collectives_of_a_program_of_cpus():
    mesh = jax.make_mesh((8,), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((64, 5), "float32", sharding=split)
    program = jax.jit(lambda x: x.sum(0)).lower(x).compile()
    assert cost.collectives(program.as_text()) == {"all-reduce": (1, 20)}


def test_the_slowest_part_bounds_a_step():
    v5e = devices.find("TPU v5 lite")
    assert v5e is devices.find("v5e") is devices.find("TPU v5e")
    work = {"flops": 197e12, "traffic": 2 * 819e9, "devices": 4, "float32": False}
    line = cost.roofline(v5e, collectives={"all-reduce": (1, 300e9)}, **work)
    assert line == pytest.approx((1, 2, 2 * 3 / 4 * 300 / 200))
    assert (line.bound, line.seconds) == ("network", pytest.approx(2.25))
    assert cost.roofline(v5e, collectives={}, **work).bound == "memory"


def test_no_two_data_sheets_share_a_name():
    names = [n.lower() for d in devices.DEVICES for n in (d.name, *d.kinds)]
    assert len(names) == len(set(names))
    assert devices.find("cpu") is None
    for device in devices.DEVICES:
        assert device.flops >= device.flops_float32 > device.bandwidth > device.link > 1e10


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v9:2x2", "v5e:2x2x2", "tpu:2x2", "v5e:2by2"])
def test_what_is_no_slice_is_told_with_those_that_are(name):
    with pytest.raises(SegjaxError, match=rf"'{name}' is no TPU slice\. .*v5e:2x2.*v4:2x2x4"):
        cost.slice_devices(name)


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setattr(cost.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cost.NoCompiler, match=r"pip install 'segjax\[tpu\]'"):
        cost.slice_devices("v5e:2x2")
