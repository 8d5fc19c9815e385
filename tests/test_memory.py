"""memory.py: sums worked out by hand, and laws over every shape."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.fit.memory import BufferSizes, Measurements, memory_cost
from gguf_embed.models.header import ModelFacts, facts_of_spec
from gguf_embed.models.registry import load_registry
from gguf_embed.native.layout import Layout

MIB = 1 << 20
# Round numbers: 10 layers of 100 bytes, a table of 70 and a projection of 60 that is part of it.
TIED = ModelFacts(
    architecture="qwen3", quant="Q4_K_M", n_layer=10, n_embd=16, n_ff=64, n_head=4, n_head_kv=2, head_dim=8, n_vocab=50,
    n_ctx_train=4096, pooling_type="last", is_causal=True, add_eos=True, layer_sizes=(100,) * 10, table_bytes=70,
    output_bytes=60, is_tied=True,
)  # fmt: skip
UNTIED = dataclasses.replace(TIED, is_tied=False)
ENCODER = dataclasses.replace(TIED, architecture="bert", pooling_type="mean", is_causal=False, output_bytes=0)
# 100 tokens take 256 cells: 2 sides, 2 heads, 8 components, 2 bytes.
KV_OF_A_LAYER = 2 * 2 * 8 * 256 * 2
# 10 tokens through a layer (residual, empty room and 3 projections), the mask, and inputs with the mean's weights.
GRAPH = 40 * (16 + 48 + 3 * 64) + 2 * 10 * 256 + 40 * 16 + 10 * 40 + 40 * 4
PROCESS = 45 * MIB + 50 * 330


def laid_out(n_gpu_layers=0, **change):
    """A layout of a hundred cells and ten tokens, on one device where it has layers there."""
    small = {"n_ctx": 100, "n_ubatch": 10, "n_seq_max": 4, "devices": ("CUDA0",) if n_gpu_layers else ()}
    return Layout(n_gpu_layers=n_gpu_layers, **small | change)


def parts(usage):
    """Weights, KV, compute and output of one memory."""
    return (usage.weights_bytes, usage.kv_bytes, usage.compute_bytes, usage.output_bytes)


def test_on_the_cpu_everything_is_on_the_host():
    """Weights, KV in whole steps of 256 cells, one graph, the rows that come out, and the program itself."""
    cost = memory_cost(TIED, laid_out())
    assert cost.devices == ()
    assert parts(cost.host) == (1070, 10 * KV_OF_A_LAYER, GRAPH, 10 * 4 * (50 + 16))
    assert cost.host.process_bytes == PROCESS
    assert not cost.is_measured


@pytest.mark.parametrize("facts", [TIED, UNTIED], ids=["tied", "untied"])
def test_whole_on_a_device_the_table_stays_on_the_host(facts):
    """Layers, KV, graph and projection go over; the token table and the inputs do not."""
    cost = memory_cost(facts, laid_out(11))
    (device,) = cost.devices
    assert parts(device) == (1060, 10 * KV_OF_A_LAYER, GRAPH, 0)
    assert parts(cost.host) == (70, 0, 10 * 4 * 16, 10 * 4 * (50 + 16))
    assert (device.process_bytes, cost.host.process_bytes) == (0, PROCESS)


def test_part_of_the_layers_takes_its_part_of_weights_and_kv():
    """Six of eleven are the projection and the last five layers; both sides need a graph, and room for a copy."""
    facts = dataclasses.replace(TIED, layer_sizes=(100,) * 5 + (300,) * 5)
    cost = memory_cost(facts, laid_out(6))
    (device,) = cost.devices
    assert parts(device)[:3] == (1560, 5 * KV_OF_A_LAYER, GRAPH + 100)
    assert parts(cost.host)[:3] == (570, 5 * KV_OF_A_LAYER, GRAPH)


def test_one_layer_on_the_device_is_the_projection():
    """The output goes over before any layer; an untied one then takes no host memory, a tied one never does."""
    for facts in (TIED, UNTIED):
        cost = memory_cost(facts, laid_out(1))
        assert (cost.devices[0].weights_bytes, cost.devices[0].kv_bytes) == (60, 0)
        assert cost.host.weights_bytes == 1070
    assert memory_cost(UNTIED, laid_out()).host.weights_bytes == 1130


def test_layers_are_shared_out_in_order():
    """Five, four, and the last layer with the projection."""
    facts = dataclasses.replace(TIED, layer_sizes=tuple(range(100, 110)))
    cost = memory_cost(facts, laid_out(11, devices=("CUDA0", "CUDA1", "CUDA2"), tensor_split=(5, 4, 2)))
    assert [usage.weights_bytes for usage in cost.devices] == [510, 426, 109 + 60]
    assert [usage.kv_bytes for usage in cost.devices] == [n * KV_OF_A_LAYER for n in (5, 4, 1)]
    assert {usage.compute_bytes for usage in cost.devices} == {GRAPH}


def test_a_projection_kept_on_the_host_computes_its_logits_there():
    """The device is freed of 60 bytes; the host holds the logits of ten tokens beside the inputs."""
    cost = memory_cost(UNTIED, laid_out(11, is_output_on_host=True))
    assert cost.devices[0].weights_bytes == 1000
    assert parts(cost.host)[:3] == (70 + 60, 0, 10 * 4 * 16 + 10 * 4 * 50)


def test_a_skipped_head_has_rows_of_texts_not_of_tokens():
    """Only four texts' rows of logits come out, and no hidden states beside them."""
    assert memory_cost(TIED, laid_out(skips_head=True)).host.output_bytes == 4 * 4 * 50


def test_an_encoder_has_neither_kv_nor_logits():
    """A BERT needs weights and activations; its context costs nothing."""
    cost = memory_cost(ENCODER, laid_out(11))
    assert (cost.devices[0].weights_bytes, cost.devices[0].kv_bytes, cost.host.kv_bytes) == (1000, 0, 0)
    assert cost.host.process_bytes == 45 * MIB + 50 * 210  # no byte-pair merges
    assert memory_cost(ENCODER, laid_out(11, n_ctx=4000)) == cost


def test_more_layers_than_there_are_count_as_all():
    """llama.cpp takes any number above n_layer for everything."""
    assert memory_cost(TIED, laid_out(99)) == memory_cost(TIED, laid_out(11))


REGISTRY = load_registry()
SPECS = [spec for spec in REGISTRY.models if spec.shape is not None]
KNOWN = [
    facts
    for spec in SPECS
    for file in spec.files[:3]
    if file.size_bytes and (facts := facts_of_spec(spec, file.quant, file.size_bytes))
]
FACTS = st.sampled_from(KNOWN) | st.sampled_from(KNOWN).map(lambda facts: dataclasses.replace(facts, is_tied=False))
CTX = st.integers(1, 32768)


@st.composite
def cases(draw):
    """A file, and a layout of it on the CPU or on one device."""
    facts = draw(FACTS)
    n_ctx = draw(CTX)
    n_ubatch = draw(st.integers(1, min(n_ctx, 2048)))
    n_gpu_layers = draw(st.integers(0, facts.n_layer + 1))
    return facts, Layout(
        n_ctx=n_ctx,
        n_ubatch=n_ubatch,
        n_seq_max=draw(st.integers(1, min(n_ubatch, 256))),
        n_gpu_layers=n_gpu_layers,
        devices=("CUDA0",) if n_gpu_layers else (),
        is_output_on_host=draw(st.booleans()),
        kv_type=draw(st.sampled_from(["f16", "q8_0"])),
        skips_head=facts.is_decoder and draw(st.booleans()),
    )


law = settings(deadline=None, max_examples=60)


def every_part(cost):
    """All bytes of a cost, part by part."""
    return [size for usage in (*cost.devices, cost.host) for size in (*parts(usage), usage.process_bytes)]


def never_less(facts, small, large):
    """Whether each part of the second layout is as large as of the first, or larger."""
    pairs = zip(every_part(memory_cost(facts, small)), every_part(memory_cost(facts, large)), strict=True)
    return all(one <= other for one, other in pairs)


@law
@given(cases(), CTX)
def test_more_context_never_costs_less(case, more):
    """Each part grows with n_ctx or stays."""
    facts, layout = case
    assert never_less(facts, layout, dataclasses.replace(layout, n_ctx=layout.n_ctx + more))


@law
@given(cases(), st.integers(0, 2048))
def test_more_tokens_a_decode_never_cost_less(case, more):
    """Each part grows with n_ubatch or stays."""
    facts, layout = case
    n_ubatch = min(layout.n_ubatch + more, layout.n_ctx)
    assert never_less(facts, layout, dataclasses.replace(layout, n_ubatch=n_ubatch))


@law
@given(cases(), st.integers(0, 256))
def test_more_texts_a_decode_never_cost_less(case, more):
    """Each part grows with n_seq_max or stays."""
    facts, layout = case
    n_seq_max = min(layout.n_seq_max + more, layout.n_ubatch)
    assert never_less(facts, layout, dataclasses.replace(layout, n_seq_max=n_seq_max))


@law
@given(cases(), st.data())
def test_more_layers_need_more_device_and_less_host(case, data):
    """Moving layers over moves bytes over."""
    facts, layout = case
    n_more = data.draw(st.integers(layout.n_gpu_layers, facts.n_layer + 1))
    larger = dataclasses.replace(layout, n_gpu_layers=n_more, devices=("CUDA0",) if n_more else ())
    few, many = memory_cost(facts, layout), memory_cost(facts, larger)
    assert few.device_bytes <= many.device_bytes
    assert few.host_bytes >= many.host_bytes


@law
@given(cases())
def test_the_parts_are_the_total(case):
    """Nothing is counted beside the parts, nothing is below zero, and only the host has outputs and a process."""
    cost = memory_cost(*case)
    assert min(every_part(cost)) >= 0
    assert cost.total_bytes == sum(every_part(cost)) == cost.device_bytes + cost.host_bytes
    assert all(usage.output_bytes == usage.process_bytes == 0 for usage in cost.devices)


@law
@given(cases())
def test_no_weight_and_no_key_is_lost_between_the_sides(case):
    """Device and host together hold the KV cache once and the file once, a tied projection on a device again."""
    facts, layout = case
    cost = memory_cost(facts, layout)
    on_device = sum(usage.weights_bytes for usage in cost.devices)
    is_copied = facts.is_tied and layout.devices and not layout.is_output_on_host
    assert on_device + cost.host.weights_bytes == facts.weights_bytes + (facts.output_bytes if is_copied else 0)
    n_cells = -(-layout.n_ctx // 256) * 256
    times, over = {"f16": (1, 1), "q8_0": (34, 64)}[layout.kv_type]
    kv_bytes = sum(usage.kv_bytes for usage in cost.devices) + cost.host.kv_bytes
    assert kv_bytes == facts.kv_bytes_per_token * n_cells * times // over


@law
@given(cases(), st.data())
def test_several_devices_hold_what_one_would(case, data):
    """Weights and KV of a split add up to one device's; the host and each graph stay as they are."""
    facts, layout = case
    n_layers = facts.n_layer + 1
    cuts = sorted(data.draw(st.lists(st.integers(1, n_layers - 1), min_size=1, max_size=3, unique=True)))
    shares = tuple(end - begin for begin, end in zip([0, *cuts], [*cuts, n_layers], strict=True))
    whole = dataclasses.replace(layout, n_gpu_layers=n_layers, devices=("CUDA0",))
    names = tuple(f"CUDA{index}" for index in range(len(shares)))
    one = memory_cost(facts, whole)
    several = memory_cost(facts, dataclasses.replace(whole, devices=names, tensor_split=shares))
    for name in ("weights_bytes", "kv_bytes"):
        assert sum(getattr(usage, name) for usage in several.devices) == getattr(one.devices[0], name)
    assert {usage.compute_bytes for usage in several.devices} == {one.devices[0].compute_bytes}
    assert several.host == one.host


@law
@given(cases())
def test_a_projection_kept_on_the_host_frees_its_bytes(case):
    """is_output_on_host takes exactly output_bytes off the device, and the host never needs less for it."""
    facts, layout = case
    off, on = (
        memory_cost(facts, dataclasses.replace(layout, n_gpu_layers=layout.n_gpu_layers or 1, devices=("CUDA0",),
                                               is_output_on_host=on_host)) for on_host in (True, False)
    )  # fmt: skip
    assert on.device_bytes - off.device_bytes == facts.output_bytes
    assert off.host_bytes - on.host_bytes >= (0 if facts.is_tied else facts.output_bytes)


def test_qwen3_4b_has_its_published_kv_cache():
    """36 layers, 8 heads of 128: 144 KiB a token, 288 MiB at 2,048 (head_dim is not n_embd / n_head)."""
    facts = facts_of_spec(REGISTRY.get("qwen3-embedding-4b"), "Q4_K_M", 2_496_703_776)
    assert facts.kv_bytes_per_token == 144 * 1024
    assert memory_cost(facts, Layout(n_ctx=2048)).host.kv_bytes == 288 * MIB
    assert memory_cost(facts, Layout(n_ctx=2048, kv_type="q8_0")).host.kv_bytes == 153 * MIB


def sizes_of(cost, *, by=0):
    """Buffers as the closed form has them, each larger by so many bytes."""
    return BufferSizes(
        compute_bytes=tuple(usage.compute_bytes + by for usage in cost.devices),
        host_compute_bytes=cost.host.compute_bytes + by,
        host_output_bytes=cost.host.output_bytes,
    )


SIZES = st.integers(0, 4096).map(lambda n_mib: n_mib * MIB + 7)


@law
@given(cases(), SIZES, SIZES, SIZES)
def test_what_was_measured_is_taken_as_it_is(case, on_device, on_host, output):
    """Buffers are llama.cpp's own, weights and KV still the file's, and the cost says that it is measured."""
    facts, layout = case
    sizes = BufferSizes(
        compute_bytes=(on_device,) * len(layout.devices), host_compute_bytes=on_host, host_output_bytes=output
    )
    known = Measurements().with_point("Q4_K_M", layout, sizes)
    cost, closed = known.cost("Q4_K_M", facts, layout), memory_cost(facts, layout)
    assert ("Q4_K_M", layout) in known
    assert cost.is_measured
    assert [usage.compute_bytes for usage in cost.devices] == [on_device] * len(layout.devices)
    assert (cost.host.compute_bytes, cost.host.output_bytes) == (on_host, output)
    assert [parts(usage)[:2] for usage in cost.devices] == [parts(usage)[:2] for usage in closed.devices]
    assert (parts(cost.host)[:2], cost.host.process_bytes) == (parts(closed.host)[:2], closed.host.process_bytes)


SHORT = st.integers(-1024, 1024).map(lambda n_mib: n_mib * MIB + 5)


@law
@given(cases(), CTX, CTX, SHORT, SHORT)
def test_other_contexts_are_set_right_by_the_largest_shortage(case, more, beyond, by, other):
    """What the closed form was ever short by is added to it, on each device and on the host; never below zero."""
    facts, layout = case
    known = Measurements()
    for n_ctx, short in ((layout.n_ctx + more, by), (layout.n_ctx + more + beyond, other)):
        measured = dataclasses.replace(layout, n_ctx=n_ctx)
        known = known.with_point("Q4_K_M", measured, sizes_of(memory_cost(facts, measured), by=short))
    cost, closed = known.cost("Q4_K_M", facts, layout), memory_cost(facts, layout)
    pairs = zip((*cost.devices, cost.host), (*closed.devices, closed.host), strict=True)
    assert all(one.compute_bytes == max(0, was.compute_bytes + max(by, other)) for one, was in pairs)
    assert (cost.host.output_bytes, cost.is_measured) == (closed.host.output_bytes, False)


@law
@given(cases(), CTX, SHORT, st.sampled_from(["quant", "n_ubatch", "n_seq_max", "is_output_on_host", "kv_type"]))
def test_a_measurement_says_nothing_of_anything_else(case, more, by, what):
    """Another quantization, and a layout that differs in more than its context, keep the closed form."""
    facts, layout = case
    layout = dataclasses.replace(layout, n_ctx=layout.n_ctx + 2, n_ubatch=layout.n_ubatch + 1)  # room for the changes
    measured = dataclasses.replace(layout, n_ctx=layout.n_ctx + more)
    known = Measurements().with_point("Q4_K_M", measured, sizes_of(memory_cost(facts, measured), by=by))
    changes = {
        "quant": {},
        "n_ubatch": {"n_ubatch": layout.n_ubatch + 1},
        "n_seq_max": {"n_seq_max": layout.n_seq_max + 1},
        "is_output_on_host": {"is_output_on_host": not layout.is_output_on_host},
        "kv_type": {"kv_type": "q8_0" if layout.kv_type == "f16" else "f16"},
    }
    other = dataclasses.replace(layout, **changes[what])
    assert known.cost("Q8_0" if what == "quant" else "Q4_K_M", facts, other) == memory_cost(facts, other)


def test_a_large_decode_that_was_measured_leaves_small_contexts_alone():
    """An encoder's longest text is measured with as many tokens a decode, more than a smaller context could hold."""
    longest = laid_out(11, n_ctx=4096, n_ubatch=4096)
    known = Measurements().with_point("Q8_0", longest, sizes_of(memory_cost(ENCODER, longest), by=MIB))
    assert known.cost("Q8_0", ENCODER, laid_out(11)) == memory_cost(ENCODER, laid_out(11))


def test_measurements_stay_as_they_were_made():
    """One more point makes new Measurements."""
    none = Measurements()
    one = none.with_point("Q8_0", laid_out(), sizes_of(memory_cost(TIED, laid_out())))
    assert ("Q8_0", laid_out()) in one
    assert ("Q8_0", laid_out()) not in none


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.model_id)
def test_facts_of_the_registry_hold_the_file_s_bytes(spec):
    """Layers and table of an estimate are the whole file, and neither is empty."""
    for file in spec.files:
        if file.size_bytes:
            facts = facts_of_spec(spec, file.quant, file.size_bytes)
            assert facts.weights_bytes == file.size_bytes
            assert len(facts.layer_sizes) == facts.n_layer
            assert min(facts.layer_sizes) > 0
            assert facts.table_bytes > 0
            assert facts.output_bytes == (facts.table_bytes if facts.is_decoder else 0)
            assert not facts.is_exact


def test_a_model_without_a_shape_has_no_estimate():
    """Without a shape nothing is guessed; the header must be read."""
    spec = dataclasses.replace(SPECS[0], shape=None)
    assert facts_of_spec(spec, "Q8_0", 10**9) is None
