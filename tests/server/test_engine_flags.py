"""vLLM's flags as `trimtab serve` reads them, and engines that guidance cannot serve; no engine."""

import warnings
from types import SimpleNamespace

import pytest
import yaml

from trimtab.errors import StartError, TrimtabError
from trimtab_server.http import HEAD_BYTES
from trimtab_server.settings import Settings

pytestmark = pytest.mark.scorecard(letter="S")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from trimtab.adapters.vllm import GuidanceProcessor, unsupported
    from trimtab.adapters.vllm.offline import Sampler
    from trimtab_server.vllm import engine, flags

UNFIT = {
    "--enable-batch-sharded-sampling": [],
}
YAML = {
    "served-model-name": ["one", "two"],
    "hf_overrides": {"rope_scaling": {"factor": 2.0, "kind": "a b"}},
    "compilation-config": {"pass_config": {"fuse_norm_quant": False}},
    "enable-prefix-caching": False,
    "enable_chunked_prefill": False,
    "disable-log-stats": False,  # has no --no- form
    "enforce-eager": True,
    "max-model-len": 256,
    "ignore-patterns": [],
    "allowed-media-domains": ["a.example", "b.example"],
    "additional-config": {"other": {"x": [1, 2]}},
}


def fit(**parallel):
    options = {"enable_batch_sharded_sampling": False, **parallel}
    return SimpleNamespace(
        speculative_config=None,
        num_speculative_tokens=0,
        use_v2_model_runner=True,
        parallel_config=SimpleNamespace(**options),
    )


def speculative(v2=True, **fields):
    """An engine with speculative decoding."""
    options = {"method": "ngram", "parallel_drafting": False, "rejection_sample_method": "standard"}
    config = fit()
    config.speculative_config = SimpleNamespace(**options | fields)
    config.num_speculative_tokens = 3
    config.use_v2_model_runner = v2
    return config


def read(vllm, *flags, defaults=()):
    return engine.parse(Settings(model="base", vllm=vllm), flags, defaults)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (
            ["--max-modle-len", "9"],
            "there is no flag --max-modle-len; did you mean --max-model-len?",
        ),
        (["--prot=9"], "there is no flag --prot; did you mean --port?"),
        (["--scorrer", "x=y"], "there is no flag --scorrer; did you mean --scorer?"),
        (["--zzzzzz"], "there is no flag --zzzzzz; see trimtab serve --help and --help-vllm."),
        (["--max-num-seqs", "many"], "see trimtab serve --help-vllm."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistyped_flag_is_one_line_with_the_right_one(typed, reason):
    with pytest.raises(StartError) as refused:
        read({}, *typed)
    assert refused.value.message.endswith(reason)
    assert "\n" not in refused.value.message


def test_the_help_of_vllm_has_its_flags():
    assert "--max-model-len" in flags.text()


@pytest.mark.parametrize("flag", UNFIT)
def test_flags_whose_rows_are_not_requests_are_refused(flag):
    with pytest.raises(TrimtabError, match=f"Leave {flag} out") as refused:
        read({}, flag, *UNFIT[flag])
    assert "\n" not in str(refused.value)
    assert set(unsupported.FLAGS.values()) == set(UNFIT)


def test_the_same_in_yaml_and_offline():
    options = {"enable_batch_sharded_sampling": True}
    with pytest.raises(TrimtabError, match="Leave --enable-batch-sharded-sampling out"):
        read(options)
    with pytest.raises(TrimtabError, match="Leave --enable-batch-sharded-sampling out"):
        Sampler("base", {"s": "scorer"}, **options)


def test_a_stock_engine_is_refused_by_the_processor():
    for config, message in (
        (fit(enable_batch_sharded_sampling=True), "Leave --enable-batch-sharded-sampling out"),
        (speculative(v2=False), "VLLM_USE_V2_MODEL_RUNNER=1"),
        (speculative(method="eagle"), "ngram, ngram_gpu, draft_model, not by 'eagle'"),
        (speculative(method="draft_model", parallel_drafting=True), "parallel_drafting"),
        (speculative(rejection_sample_method="synthetic"), "Set it to 'standard'"),
        (fit(), "diffusion"),
    ):
        if message == "diffusion":
            config.num_speculative_tokens = 256
        with pytest.raises(TrimtabError, match=message) as refused:
            GuidanceProcessor(config, "cpu", object())
        assert "\n" not in str(refused.value)


def test_a_fit_engine_passes():
    drafting = [speculative(method=method) for method in unsupported.METHODS]
    # Rejection sampling is exact with sampled draft tokens, too, and block by block.
    drafting.append(speculative(method="draft_model", draft_sample_method="probabilistic"))
    drafting.append(speculative(rejection_sample_method="block"))
    for config in (fit(), *drafting):
        unsupported.check_config(config)
    unsupported.check_options({**dict.fromkeys(unsupported.FLAGS), "dtype": "float32"})


def test_yaml_reaches_vllm_as_its_own_does(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({name.replace("_", "-"): v for name, v in YAML.items()}))
    parser = flags.make_arg_parser(FlexibleArgumentParser())
    own = vars(parser.parse_args(["--config", str(file), "--model", "base"]))
    ours = vars(read(YAML))
    set_by_us = {
        "config",
        "logits_processors",
        "worker_extension_cls",
        "scheduler_cls",
        "additional_config",
        "max_logprobs",
        "enable_request_id_headers",
        "h11_max_incomplete_event_size",
        "api_key",
        "use_tqdm_on_load",
    }
    assert {n: v for n, v in ours.items() if n not in set_by_us} == {
        n: v for n, v in own.items() if n not in set_by_us
    }
    assert ours["served_model_name"] == ["one", "two"]
    assert ours["hf_overrides"] == YAML["hf_overrides"]
    assert ours["enable_prefix_caching"] is False
    assert ours["additional_config"]["other"] == {"x": [1, 2]}
    assert ours["h11_max_incomplete_event_size"] == HEAD_BYTES  # which vLLM would not limit so


def test_the_command_line_wins_over_yaml_and_yaml_over_defaults():
    lengths = {"max-model-len": 256}
    defaults = ["--max-model-len", "512", "--max-num-seqs", "64"]
    args = read(lengths, "--max-num-seqs", "8", defaults=defaults)
    assert (args.max_model_len, args.max_num_seqs) == (256, 8)
    assert read(lengths, "--max-model-len", "128", defaults=defaults).max_model_len == 128
