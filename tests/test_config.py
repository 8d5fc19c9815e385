"""config.py: environment over config file over default, and words for what cannot be used."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gguf_embed.config import DEFAULT_ENDPOINT, DEFAULT_MODEL, Config, load_config
from gguf_embed.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "settings"
    path.mkdir()
    return path


@pytest.fixture
def load(folder):
    def with_file(text="", **environ):
        if text:
            (folder / "config.toml").write_text(text, encoding="utf-8")
        return load_config({"GGUF_EMBED_CONFIG_DIR": str(folder), **environ})

    return with_file


def test_defaults_hold_where_nothing_is_set(load):
    """Without file and variables the default model runs on what is free, online, at the public hub."""
    config = load()
    assert (config.model, config.memory_bytes, config.device, config.n_threads) == (DEFAULT_MODEL, None, "auto", None)
    assert (config.offline, config.endpoint) == (False, DEFAULT_ENDPOINT)


SETTINGS = [
    pytest.param("model", "bge-m3", "nomic-embed-text-v1.5", "model", "bge-m3", "nomic-embed-text-v1.5", id="model"),
    pytest.param("memory", "2GiB", "512M", "memory_bytes", 2 << 30, 512 << 20, id="memory"),
    pytest.param("device", "CPU", "gpu", "device", "cpu", "gpu", id="device"),
    pytest.param("n_threads", "3", "5", "n_threads", 3, 5, id="n_threads"),
    pytest.param("offline", "yes", "off", "offline", True, False, id="offline"),
    pytest.param("endpoint", "http://a", "http://b", "endpoint", "http://a", "http://b", id="endpoint"),
]


@pytest.mark.parametrize(("key", "in_file", "in_env", "field", "from_file", "from_env"), SETTINGS)
def test_the_environment_beats_the_file(load, key, in_file, in_env, field, from_file, from_env):
    """Each key of config.toml has its variable GGUF_EMBED_<KEY>, which wins."""
    text = f'{key} = "{in_file}"\n'
    assert getattr(load(text), field) == from_file
    assert getattr(load(text, **{f"GGUF_EMBED_{key.upper()}": in_env}), field) == from_env


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("n_threads = 6", "n_threads", 6),
        ("offline = true", "offline", True),
        ("offline = false", "offline", False),
        ("memory = 4294967296", "memory_bytes", 4 << 30),
    ],
)
def test_toml_values_of_their_own_type_are_read(load, line, field, value):
    """Numbers and booleans of TOML need no quotes."""
    assert getattr(load(line), field) == value


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GGUF_EMBED_DEVICE", "tpu"),
        ("GGUF_EMBED_MEMORY", "lots"),
        ("GGUF_EMBED_MEMORY", "0"),
        ("GGUF_EMBED_N_THREADS", "0"),
        ("GGUF_EMBED_N_THREADS", "many"),
        ("GGUF_EMBED_OFFLINE", "perhaps"),
        ("HF_HUB_OFFLINE", "perhaps"),
    ],
)
def test_a_bad_variable_is_named_with_its_value(load, variable, value):
    """A value that cannot be used is a ConfigError with the variable and the value in its message."""
    with pytest.raises(ConfigError) as caught:
        load(**{variable: value})
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)
    assert caught.value.path is None


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('device = "tpu"', "device"),
        ("model = 3", "model"),
        ('model = ""', "model"),
        ("n_threads = -1", "n_threads"),
        ('memory = "much"', "memory"),
        ('offline = "maybe"', "offline"),
        ('modle = "x"', "modle"),
    ],
)
def test_a_bad_key_in_the_file_is_named_with_the_file(load, folder, line, key):
    """A key or value that cannot be used is a ConfigError with file and key, also as attributes."""
    with pytest.raises(ConfigError) as caught:
        load(line)
    assert caught.value.key == key
    assert caught.value.path == folder / "config.toml"
    assert str(folder / "config.toml") in str(caught.value)
    assert key in str(caught.value)


def test_an_unknown_key_is_told_which_keys_there_are(load):
    """The message lists every key, so that a misspelt one can be mended."""
    with pytest.raises(ConfigError, match="the keys are model, memory, device, n_threads, offline, endpoint"):
        load('modle = "x"')


@pytest.mark.parametrize("content", [b"model = ", b"\xff\xfe", b"[a\n"], ids=["half a line", "no UTF-8", "no TOML"])
def test_a_file_that_cannot_be_read_is_an_error(load, folder, content):
    """A broken config.toml stops the program instead of being ignored."""
    (folder / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load()
    assert caught.value.__cause__ is not None


def test_a_folder_in_the_place_of_the_file_is_an_error(load, folder):
    """A config.toml that is a folder is a ConfigError, not a traceback."""
    (folder / "config.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/b"),
        ({"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(load, environ, expected):
    """The hub cache follows huggingface_hub's variables in its order, so no second cache arises."""
    assert load(**environ).hub_cache == Path(expected).expanduser().absolute()


def test_hf_words_are_honoured(load):
    """HF_ENDPOINT and HF_HUB_OFFLINE count, and the endpoint loses its last slash."""
    config = load(HF_ENDPOINT="http://mirror/", HF_HUB_OFFLINE="1")
    assert (config.endpoint, config.offline) == ("http://mirror", True)


def test_an_empty_variable_counts_as_not_set(load):
    """GGUF_EMBED_MODEL= leaves the file's word."""
    assert load('model = "bge-m3"', GGUF_EMBED_MODEL="").model == "bge-m3"


def test_paths_are_absolute_and_know_the_home_folder(load, monkeypatch, tmp_path):
    """A tilde and a relative folder become absolute paths."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load(HF_HUB_CACHE="~/models").hub_cache == tmp_path / "models"
    assert load(GGUF_EMBED_CACHE_DIR="here").cache_dir == Path.cwd() / "here"


def test_without_an_argument_the_real_environment_is_read(monkeypatch, tmp_path):
    """load_config() reads os.environ."""
    monkeypatch.setenv("GGUF_EMBED_MODEL", "bge-m3")
    assert load_config().model == "bge-m3"
    assert load_config().config_dir == tmp_path / "config"


@pytest.mark.parametrize("change", [{"device": "tpu"}, {"memory_bytes": 0}, {"n_threads": 0}], ids=str)
def test_a_config_checks_itself(load, change):
    """A Config with a value that cannot be used is never made."""
    with pytest.raises(ValueError, match="it is"):
        dataclasses.replace(load(), **change)


def test_a_config_is_frozen(load):
    """Settings cannot change once they are read."""
    config = load()
    assert isinstance(config, Config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = "other"


def test_a_memory_beyond_floats_is_a_config_error(load):
    """Any unusable value is a ConfigError."""
    with pytest.raises(ConfigError, match="GGUF_EMBED_MEMORY"):
        load(GGUF_EMBED_MEMORY="9" * 400)


def test_a_home_folder_that_is_not_known_is_a_config_error(load):
    """A folder of a user who is not there is told with its text."""
    with pytest.raises(ConfigError, match="~nobody-of-that-name"):
        load(HF_HOME="~nobody-of-that-name/hf")


@pytest.mark.parametrize("line", ["n_threads = 2.7", "n_threads = true"])
def test_threads_are_whole_numbers(load, line):
    """Nothing is silently rounded or counted as 1."""
    with pytest.raises(ConfigError, match="n_threads"):
        load(line)


def test_who_said_offline_stays_offline(load):
    """Our own word is the closer one; another tool's default does not open connections."""
    assert load(GGUF_EMBED_OFFLINE="1", HF_HUB_OFFLINE="0").offline


def test_our_own_endpoint_is_the_closer_one(load):
    """GGUF_EMBED_ENDPOINT is this program's, HF_ENDPOINT every program's."""
    assert load(GGUF_EMBED_ENDPOINT="http://ours", HF_ENDPOINT="http://theirs").endpoint == "http://ours"
