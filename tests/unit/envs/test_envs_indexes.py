"""Which indexes uv is told about: pip's rules of precedence, uv's own settings before them, nothing secret shown."""

import importlib.util
import os
import string
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.envs import indexes
from harness.envs.indexes import IndexSettings, IndexSettingsError, read_index_settings, redact, translate


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A pretended file system root with an empty home."""
    (tmp_path / "home").mkdir()
    return tmp_path


def settings(machine: Path, **environ: str) -> IndexSettings:
    return read_index_settings(
        {"HOME": str(machine / "home"), **environ}, prefix=machine / "prefix", system=machine / "system"
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_silent_machine_hands_nothing_over(machine: Path) -> None:
    found = settings(machine)

    assert (found.source, dict(found.environment), found.options) == ("none", {}, ())


def test_pip_files_are_read_from_the_general_to_the_particular(machine: Path) -> None:
    write(machine / "system/etc/xdg/pip/pip.conf", "[global]\nindex-url = https://xdg.test/simple\n")
    assert settings(machine).environment["UV_DEFAULT_INDEX"] == "https://xdg.test/simple"
    write(machine / "system/etc/pip.conf", "[global]\nindex-url = https://etc.test/simple\n")
    assert settings(machine).environment["UV_DEFAULT_INDEX"] == "https://etc.test/simple"
    write(machine / "home/.pip/pip.conf", "[global]\nindex-url = https://legacy.test/simple\n")
    assert settings(machine).environment["UV_DEFAULT_INDEX"] == "https://legacy.test/simple"
    write(machine / "home/.config/pip/pip.conf", "[global]\nindex-url = https://user.test/simple\n")
    assert settings(machine).environment["UV_DEFAULT_INDEX"] == "https://user.test/simple"
    write(machine / "prefix/pip.conf", "[global]\nindex-url = https://site.test/simple\n")
    assert settings(machine).environment["UV_DEFAULT_INDEX"] == "https://site.test/simple"
    chosen = write(machine / "chosen.conf", "[global]\nindex-url = https://chosen.test/simple\n")
    found = settings(machine, PIP_CONFIG_FILE=str(chosen))
    assert found.environment["UV_DEFAULT_INDEX"] == "https://chosen.test/simple"
    found = settings(machine, PIP_CONFIG_FILE=str(chosen), PIP_INDEX_URL="https://env.test/simple")
    assert found.environment["UV_DEFAULT_INDEX"] == "https://env.test/simple"


def test_a_chosen_file_replaces_the_users_and_the_null_device_replaces_all(machine: Path) -> None:
    write(machine / "home/.config/pip/pip.conf", "[global]\nextra-index-url = https://user.test/simple\n")
    chosen = write(machine / "chosen.conf", "[global]\nindex-url = https://chosen.test/simple\n")

    assert "UV_INDEX" not in settings(machine, PIP_CONFIG_FILE=str(chosen)).environment
    assert settings(machine, PIP_CONFIG_FILE=os.devnull).source == "none"
    assert settings(machine, PIP_CONFIG_FILE=str(machine / "absent.conf")).source == "pip"


def test_install_section_outranks_global_in_a_file_and_spelling_does_not_matter(machine: Path) -> None:
    text = "[global]\nINDEX_URL = https://global.test/simple\n[install]\n--index-url = https://install.test/simple\n"
    write(machine / "system/etc/pip.conf", text)

    assert settings(machine).environment["UV_DEFAULT_INDEX"] == "https://install.test/simple"


def test_lists_are_separated_by_white_space_in_pip_and_as_uv_wants_them_after(machine: Path) -> None:
    (machine / "one").mkdir()
    (machine / "t,wo").mkdir()
    text = (
        "[global]\nextra-index-url =\n    https://a.test/simple\n    https://b.test/simple\n"
        f"find-links = {machine / 'one'} https://c.test/wheels\n  file://{machine}/t,wo {machine / 'gone'}\n"
    )
    write(machine / "system/etc/pip.conf", text)

    found = settings(machine)

    assert found.environment["UV_INDEX"] == "https://a.test/simple https://b.test/simple"
    links = found.environment["UV_FIND_LINKS"].split(",")
    assert links == [str(machine / "one"), "https://c.test/wheels", f"file://{machine}/t%2Cwo"]
    assert found.environment["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert any(str(machine / "gone") in line and "left out" in line for line in found.decisions)


def test_uv_settings_in_the_environment_win_over_all_of_pips(machine: Path) -> None:
    found = settings(machine, UV_INDEX="https://uv.test/simple", PIP_INDEX_URL="https://pip.test/simple")

    assert (found.source, dict(found.environment)) == ("uv", {})


@pytest.mark.parametrize(
    "text",
    ['[[index]]\nname = "x"\nurl = "https://uv.test/simple"\n', '[pip]\nindex-url = "https://uv.test/simple"\n'],
)
def test_uv_settings_in_a_file_win_too(machine: Path, text: str) -> None:
    write(machine / "home/.config/uv/uv.toml", text)

    assert settings(machine, PIP_INDEX_URL="https://pip.test/simple").source == "uv"
    assert settings(machine, PIP_INDEX_URL="https://pip.test/simple", UV_NO_CONFIG="1").source == "pip"


def test_a_uv_file_about_other_things_does_not_win_but_counts_for_the_digest(machine: Path) -> None:
    before = settings(machine, PIP_INDEX_URL="https://pip.test/simple")
    write(machine / "home/.config/uv/uv.toml", 'exclude-newer = "2026-01-01"\n')
    after = settings(machine, PIP_INDEX_URL="https://pip.test/simple")

    assert after.source == "pip"
    assert before.digest != after.digest


def test_a_strategy_that_the_user_chose_stays(machine: Path) -> None:
    found = settings(machine, UV_INDEX_STRATEGY="first-index", PIP_EXTRA_INDEX_URL="https://pip.test/simple")

    assert dict(found.environment) == {"UV_INDEX": "https://pip.test/simple"}


def test_no_index_leaves_only_find_links(machine: Path) -> None:
    found = settings(
        machine, PIP_NO_INDEX="yes", PIP_INDEX_URL="https://a.test/simple", PIP_FIND_LINKS=str(machine / "home")
    )

    assert found.options == ("--no-index",)
    assert set(found.environment) == {"UV_FIND_LINKS", "UV_INDEX_STRATEGY"}


def test_network_settings_are_carried_and_a_missing_certificate_is_said(machine: Path) -> None:
    cert = write(machine / "ca.pem", "")
    found = settings(
        machine,
        PIP_CERT=str(cert),
        PIP_TRUSTED_HOST="a.test b.test:8443",
        PIP_PROXY="user:secret@proxy.test:3128",
        PIP_TIMEOUT="90",
        PIP_RETRIES="2",
    )

    assert dict(found.environment) == {
        "SSL_CERT_FILE": str(cert),
        "UV_INSECURE_HOST": "a.test b.test:8443",
        "HTTP_PROXY": "http://user:secret@proxy.test:3128",
        "HTTPS_PROXY": "http://user:secret@proxy.test:3128",
        "UV_HTTP_TIMEOUT": "90",
        "UV_HTTP_RETRIES": "2",
    }
    assert "secret" not in repr(found)
    gone = settings(machine, PIP_CERT=str(machine / "gone.pem"))
    assert gone.source == "none"
    assert any("gone.pem" in line and "not handed over" in line for line in gone.decisions)


def test_a_certificate_in_the_environment_is_uvs_own_and_stays(machine: Path) -> None:
    cert = write(machine / "ca.pem", "")

    assert "SSL_CERT_FILE" not in settings(machine, PIP_CERT=str(cert), SSL_CERT_FILE="/other.pem").environment


def test_what_is_not_about_indexes_is_left_out_and_said(machine: Path) -> None:
    found = settings(machine, PIP_CONSTRAINT="c.txt", PIP_PRE="1")

    assert found.source == "none"
    said = " ".join(found.decisions)
    assert "'constraint'" in said
    assert "'pre'" in said


def test_a_malformed_pip_file_is_an_error_that_names_it_and_hides_secrets(machine: Path) -> None:
    path = write(machine / "system/etc/pip.conf", "index-url = https://me:secret@a.test/simple\n")

    with pytest.raises(IndexSettingsError) as caught:
        settings(machine)

    assert str(path) in caught.value.message
    assert "secret" not in caught.value.message


def test_a_malformed_uv_file_is_an_error_that_names_it(machine: Path) -> None:
    path = write(machine / "system/etc/uv/uv.toml", "index = [")

    with pytest.raises(IndexSettingsError, match="cannot be read") as caught:
        settings(machine)

    assert str(path) in caught.value.message


def test_an_unreadable_pip_file_is_said(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(machine / "system/etc/pip.conf", "[global]\nindex-url = https://a.test/simple\n")
    whole = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return whole(self, *args, **kwargs)  # type: ignore[call-overload]  # passed through untouched

    monkeypatch.setattr(Path, "open", refuse)
    found = settings(machine)

    assert found.source == "none"
    assert any("Permission denied" in line for line in found.decisions)


def test_values_pasted_from_pip_config_list_are_understood(machine: Path) -> None:
    found = settings(machine, PIP_EXTRA_INDEX_URL="'https://a.test/simple\\nhttps://b.test/simple'")

    assert found.environment["UV_INDEX"] == "https://a.test/simple https://b.test/simple"


def test_a_folder_as_an_index_becomes_an_address(machine: Path) -> None:
    found = settings(machine, PIP_INDEX_URL=str(machine / "home"))

    assert found.environment["UV_DEFAULT_INDEX"] == f"file://{machine}/home"


def test_secrets_are_in_the_environment_only_and_a_new_token_changes_no_digest(machine: Path) -> None:
    first = settings(
        machine, PIP_INDEX_URL="https://me:secret1@a.test/simple", PIP_FIND_LINKS="https://b.test/?sig=secret1"
    )
    second = settings(
        machine, PIP_INDEX_URL="https://me:secret2@a.test/simple", PIP_FIND_LINKS="https://b.test/?sig=secret2"
    )
    other = settings(
        machine, PIP_INDEX_URL="https://me:secret1@c.test/simple", PIP_FIND_LINKS="https://b.test/?sig=secret1"
    )

    assert first.environment["UV_DEFAULT_INDEX"] == "https://me:secret1@a.test/simple"
    assert "secret1" not in " ".join(first.decisions) + repr(first) + first.digest
    assert first.digest == second.digest != other.digest
    assert "a.test" not in first.digest


def test_patience_and_certificates_change_no_digest(machine: Path) -> None:
    plain = settings(machine, PIP_INDEX_URL="https://a.test/simple")
    patient = settings(machine, PIP_INDEX_URL="https://a.test/simple", PIP_TIMEOUT="100", PIP_PROXY="p.test:1")

    assert plain.digest == patient.digest


_SECRET = st.text(alphabet=string.ascii_letters + string.digits + "!$&()*+,;=:@%._~-", min_size=1)


@given(user=_SECRET, password=_SECRET)
def test_no_credential_survives_redaction(user: str, password: str) -> None:
    text = f"fetching https://{user}:{password}@host.test/simple/x/ failed"

    assert redact(text) == "fetching https://***@host.test/simple/x/ failed"


@given(st.text(alphabet=string.ascii_letters + " .,()=<>\n'", max_size=80))
def test_text_without_addresses_is_not_touched(text: str) -> None:
    assert redact(text) == text


@given(st.dictionaries(st.sampled_from(["index-url", "extra-index-url", "timeout", "pre", "proxy"]), st.text()))
@example({"index-url": "~nobody"})
@example({"extra-index-url": "x" * 5000})
def test_translation_of_anything_is_made_of_variables_that_hold_something(pip: dict[str, str]) -> None:
    variables, options, _ = translate(pip, {})

    assert all(variables.values())
    assert options == ()


def test_it_loads_by_path_without_any_package_of_ours(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    """As noxfile.py does it: not registered in sys.modules, and nothing but the standard library imported."""
    spec = importlib.util.spec_from_file_location("loaded_by_path", indexes.__file__)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    monkeypatch.setenv("PIP_INDEX_URL", "https://a.test/simple")
    found = module.read_index_settings({"HOME": str(machine), "PIP_INDEX_URL": "https://a.test/simple"}, system=machine)

    assert found.environment["UV_DEFAULT_INDEX"] == "https://a.test/simple"
    source = Path(indexes.__file__).read_text(encoding="utf-8")
    assert "import harness" not in source
    assert "from harness" not in source
