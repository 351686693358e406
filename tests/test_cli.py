"""The command line: results on stdout, one-line errors, exit codes, JSON, every file format."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def memstore(*arguments, stdin=None, ok=True, env=None):
    """Run a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "memstore", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "90", **(env or {})},
    )
    if ok:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def store(narrative_store, tmp_path):
    """A copy of the store with the narratives."""
    path = tmp_path / "copy.db"
    shutil.copy(narrative_store, path)
    return path


def test_a_life_of_a_store(tmp_path):
    """init, insert, show, search, delete, optimize, check, as a person would."""
    path = tmp_path / "diary.db"
    assert "minilm" in memstore("init", path).stdout
    assert memstore("init", path, ok=False).returncode == 1
    first = memstore(
        "insert", path, "We argued in the rain.", "--category", "Quarrels", "--key", "rain",
        "--metadata", '{"mood": 2}', "--occurred-at", "2024-05-01",
    ).stdout  # fmt: skip
    assert first == "1\n"
    assert memstore("insert", path, "-", stdin="Tea on the balcony.\n").stdout == "2\n"
    shown = json.loads(memstore("show", path, 1, "--json").stdout)
    assert shown["metadata"] == {"mood": 2}
    assert shown["occurred_at"] == "2024-05-01T00:00:00+00:00"
    assert len(shown["trace"]) == 32
    assert "We argued" in memstore("show", path, 1).stdout
    hits = json.loads(memstore("search", path, "a fight", "-k", 1, "--json").stdout)
    assert hits[0]["key"] == "rain"
    assert memstore("list", path, "--where", '{"mood": {"$lt": 3}}').stdout.count("\n") == 2
    assert memstore("delete", path, 1).stdout == "1 deleted\n"
    assert "bytes" in memstore("optimize", path).stdout
    assert memstore("check", path).stdout == "1 memories, all well\n"
    stats = json.loads(memstore("stats", path, "--json").stdout)
    assert (stats["memories"], stats["categories"], stats["neurons"]) == (1, {}, 3072)


def test_queries_agree_with_the_library(store):
    """The same hits in the same order, as JSON and in the table."""
    from memstore import MemoryStore

    with MemoryStore.open(store, mode="r") as opened:
        neuron = int(opened.trace(7).neurons[0])
        expected = {
            ("top", str(neuron)): opened.top(neuron, 4),
            ("composite", f"+{neuron} -5 & !6"): opened.composite(f"{neuron} - 5 & !6", 4),
            ("search", "a funeral"): opened.search("a funeral", 4),
            ("similar", "7"): opened.similar(7, 4),
        }
    for (command, argument), hits in expected.items():
        printed = memstore(command, store, argument, "-k", 4, "--json").stdout
        assert json.loads(printed) == hits.to_dicts()
        table = memstore(command, store, argument, "-k", 4).stdout.splitlines()
        assert [line.split()[0] for line in table[1:]] == [str(hit.id) for hit in hits]
        assert all(len(line) <= 90 for line in table)
    why = memstore("top", store, neuron, "-k", 1, "--why").stdout
    assert re.search(rf"N{neuron}: ('.+' )?fires 0\.\d+ x weight 1", why)


def test_an_expression_may_begin_with_a_minus(store):
    """It is no option."""
    hits = json.loads(memstore("composite", store, "-5 -7", "-k", 2, "--json").stdout)
    assert [hit["score"] for hit in hits] == [0.0, 0.0]


def test_a_label_given_in_the_shell_works_in_the_shell(store):
    """neuron --label, then the name in an expression, then --unlabel."""
    memstore("neuron", store, 450, "--label", "mirth of ours")
    by_name = memstore("composite", store, "+'mirth of ours'", "--json").stdout
    assert by_name == memstore("top", store, 450, "--json").stdout
    shown = memstore("neuron", store, "mirth of ours").stdout
    assert "mirth of ours" in shown
    assert "precision@20" in shown
    memstore("neuron", store, 450, "--unlabel")
    assert "no neuron is called" in memstore("top", store, "mirth of ours", ok=False).stderr


FORMATS = {
    "rows.jsonl": '{"body": "First of all.", "mood": "calm", "n": 1}\n\n{"body": "Second."}\n',
    "rows.json": '[{"body": "First of all.", "mood": "calm", "n": 1}, "Second."]',
    "rows.csv": '\ufeffbody,mood,n\n"First of all.",calm,1\nSecond.,,\n',
    "rows.txt": "First of all.\n\nSecond.\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_imported(tmp_path, name):
    """JSON Lines, JSON, CSV and plain lines; gzip and stdin; unnamed fields become metadata."""
    file, path = tmp_path / name, tmp_path / "store.db"
    file.write_text(FORMATS[name], encoding="utf-8")
    command = ("--text", "body")
    if file.suffix != ".txt":
        command += ("--category", "mood")
    done = memstore("import", path, file, *command)
    assert done.stdout == "2 rows, 2 new, 2 memories\n"
    with gzip.open(f"{file}.gz", "wt", encoding="utf-8") as packed:
        packed.write(FORMATS[name])
    assert memstore("import", path, f"{file}.gz", *command).stdout == "2 rows, 0 new, 2 memories\n"
    kind = {"txt": "text"}.get(file.suffix[1:], file.suffix[1:])
    again = memstore("import", path, "-", "--format", kind, *command, stdin=FORMATS[name])
    assert again.stdout == "2 rows, 0 new, 2 memories\n"
    first = json.loads(memstore("show", path, 1, "--json").stdout)
    assert first["text"] == "First of all."
    if kind != "text":
        assert first["category"] == "calm"
        assert str(first["metadata"]["n"]) == "1"


def test_a_table_as_pandas_writes_it_is_imported(tmp_path):
    """An unnamed first column, and whole numbers as keys."""
    (tmp_path / "frame.csv").write_text(",id,text\n0,17,First.\n1,18,Second.\n")
    path = tmp_path / "store.db"
    done = memstore("import", path, tmp_path / "frame.csv", "--key", "id")
    assert done.stdout == "2 rows, 2 new, 2 memories\n"
    more = [{"id": 18, "text": "Again."}, {"id": 19, "text": "New."}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, more)))
    done = memstore("import", path, tmp_path / "more.jsonl", "--key", "id")
    assert done.stdout == "2 rows, 1 new, 3 memories\n"


def test_what_is_exported_can_be_imported(store, tmp_path):
    """Texts, categories, keys, metadata and times come back; ids are new."""
    memstore("insert", store, "Dated.", "--key", "k", "--occurred-at", "2020-01-01", "--metadata",
             '{"a": [1]}')  # fmt: skip
    assert memstore("export", store, tmp_path / "out.jsonl").stdout.startswith("451 memories")
    memstore("import", tmp_path / "new.db", tmp_path / "out.jsonl")
    memstore("export", tmp_path / "new.db", tmp_path / "again.jsonl")

    def rows(name):
        lines = (tmp_path / name).read_text("utf-8").splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if not k.endswith("ed_at")}
            | {"occurred_at": json.loads(line)["occurred_at"]}
            for line in lines
        ]

    assert rows("out.jsonl") == rows("again.jsonl")


def test_skipped_rows_are_counted_on_stderr(tmp_path):
    """The same text twice in a file: one memory, and a line that says so."""
    (tmp_path / "rows.txt").write_text("Nothing happened.\nNothing happened.\n")
    done = memstore("import", tmp_path / "s.db", tmp_path / "rows.txt")
    assert done.stdout == "2 rows, 1 new, 1 memories\n"
    assert "1 rows were there already" in done.stderr
    assert "--on-duplicate add" in done.stderr


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    """A stored escape sequence or text direction override is shown, not obeyed."""
    path = tmp_path / "s.db"
    memstore("insert", path, "red \x1b[31m and \u202e backwards", "--category", "a\nb")
    for command in (["list", path], ["show", path, 1], ["search", path, "red", "--why"]):
        shown = memstore(*command).stdout
        assert "\x1b[31m" not in shown
        assert "\u202e" not in shown
    exact = json.loads(memstore("show", path, 1, "--json").stdout)
    assert exact["text"] == "red \x1b[31m and \u202e backwards"


def test_a_terminal_that_cannot_show_a_letter_gets_its_escape(tmp_path):
    """No traceback where stdout is not UTF-8."""
    path = tmp_path / "s.db"
    memstore("insert", path, "שלום and 🙂")
    done = memstore("list", path, env={"PYTHONIOENCODING": "latin-1"})
    assert "\\u05e9" in done.stdout
    memstore("neuron", path, 5, env={"PYTHONIOENCODING": "latin-1"})


def test_neurons_are_named_alike_everywhere(store):
    """15 and N15 are one neuron in every command; a label cannot pose as a number."""
    assert memstore("top", store, "N450", "--json").stdout == memstore(
        "composite", store, "N450", "--json"
    ).stdout  # fmt: skip
    for label in ("207", "N5"):
        refused = memstore("neuron", store, 450, "--label", label, ok=False)
        assert "would be read as the number" in refused.stderr
    memstore("neuron", store, 450, "--label", " big  laugh ")
    assert memstore("top", store, "big laugh", "-k", 1).returncode == 0


def test_demo_does_not_touch_a_store_of_ones_own(tmp_path):
    """Samples are not mixed into a diary."""
    memstore("insert", tmp_path / "diary.db", "Mine.")
    assert "of your own" in memstore("demo", tmp_path / "diary.db", ok=False).stderr
    assert memstore("check", tmp_path / "diary.db").stdout == "1 memories, all well\n"


MISTAKES = {
    "no such store": (["top", "{tmp}/none.db", "1"], "no store at"),
    "not a store": (["top", "{tmp}/text.db", "1"], "not a memstore store"),
    "unknown neuron": (["top", "{store}", "5000"], "neurons 0 to 3071"),
    "unknown label": (["top", "{store}", "qwertz"], "no neuron is called 'qwertz'"),
    "bad expression": (["composite", "{store}", "15 %"], "at position 3"),
    "bad filter": (["list", "{store}", "--where", "{mood: 1}"], "--where is not JSON"),
    "unknown operator": (["list", "{store}", "--where", '{"a": {"$x": 1}}'], "unknown operator"),
    "no such memory": (["show", "{store}", "9999"], "no memory has id 9999"),
    "empty text": (["insert", "{store}", " "], "text is empty"),
    "missing file": (["import", "{store}", "{tmp}/none.jsonl"], "check the path"),
    "unknown format": (["import", "{store}", "{tmp}/rows.xyz"], "add --format"),
    "not JSON": (["import", "{store}", "{tmp}/bad.jsonl"], "bad.jsonl line 2 is not JSON"),
    "no such field": (["import", "{store}", "{tmp}/good.jsonl", "--text", "b"], "has no field 'b'"),
    "misspelt category": (
        ["import", "{store}", "{tmp}/good.jsonl", "--text", "a", "--category", "moood"],
        "no row has the field 'moood' that --category names",
    ),
    "empty row": (["import", "{store}", "{tmp}/empty.jsonl"], "empty.jsonl row 2: text is empty"),
    "not UTF-8": (["import", "{store}", "{tmp}/latin.txt"], "line 1 is not UTF-8"),
    "uneven CSV": (["import", "{store}", "{tmp}/uneven.csv"], "another number of cells"),
    "bad half-life": (["search", "{store}", "x", "--half-life", "soon"], "half_life"),
    "too few texts": (
        ["train", "{tmp}/good.jsonl", "--text", "a", "--out", "{tmp}/o"],
        "too few",
    ),
    "no weights": (["init", "{tmp}/n.db", "--sae", "{tmp}/nothing"], "no weights at"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_1(store, tmp_path, case):
    """No traceback, nothing on stdout, and the store is well afterwards."""
    (tmp_path / "text.db").write_text("not a database at all\n" * 50)
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "good.jsonl").write_text('{"a": "fine"}\n')
    (tmp_path / "empty.jsonl").write_text('{"text": "fine"}\n{"text": ""}\n')
    (tmp_path / "latin.txt").write_bytes("Größe\n".encode("latin-1"))
    (tmp_path / "uneven.csv").write_text("text,a\none,1,2\n")
    arguments, message = MISTAKES[case]
    filled = [part.replace("{tmp}", str(tmp_path)) for part in arguments]
    filled = [part.replace("{store}", str(store)) for part in filled]
    done = memstore(*filled, ok=False, env={"PYTHONWARNINGS": ""})
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("memstore: ")
    assert message in last
    assert "Traceback" not in done.stderr
    assert memstore("check", store).stdout == "450 memories, all well\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["top"],
        ["search", "x.db"],
        ["delete", "x.db"],
        ["top", "x.db", "1", "-k", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments):
    """click explains, without a traceback."""
    done = memstore(*arguments, ok=False)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_deleting_by_filter_asks_first(store):
    """No answer, no deletion; --yes for scripts."""
    refused = memstore("delete", store, "--category", "Routine", stdin="n\n", ok=False)
    assert refused.returncode == 130
    assert memstore("delete", store, "--category", "Routine", "--yes").stdout == "150 deleted\n"


def test_a_closed_pipe_is_no_error(store):
    """`memstore list | head` ends quietly."""
    done = subprocess.run(
        f"{sys.executable} -m memstore list {store} -n 0 --json | head -1",
        shell=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == "[\n"
    assert done.stderr == ""


def test_json_is_everywhere_there_is_a_result(store, tmp_path):
    """Care commands too."""
    commands = [
        ["init", tmp_path / "i.db"],
        ["export", store, tmp_path / "e.jsonl"],
        ["optimize", store],
        ["backup", store, tmp_path / "b.db"],
        ["upgrade", store],
        ["check", store],
        ["list", store],
        ["neuron", store, 450],
        ["delete", store, 1],
    ]
    for command in commands:
        assert json.loads(memstore(*command, "--json").stdout)


def test_backup_and_upgrade_and_completion(store, tmp_path):
    """A backup opens, a current store needs no upgrade, the completion script is one."""
    memstore("backup", store, tmp_path / "b.db")
    assert "450" in memstore("check", tmp_path / "b.db").stdout
    assert "exists" in memstore("backup", store, tmp_path / "b.db", ok=False).stderr
    assert "up to date" in memstore("upgrade", store).stdout
    assert "_MEMSTORE_COMPLETE" in memstore("completion", "bash").stdout


def test_demo_answers_with_reasons(tmp_path):
    """450 narratives in, five questions answered, each hit with its reasons."""
    done = memstore("demo", tmp_path / "demo.db")
    assert done.stdout.count("$ memstore") == 5
    assert done.stdout.count("score") >= 10
    assert "450 of 450 memories" in done.stderr


@pytest.mark.slow
def test_the_prototypes_two_steps_from_the_shell(tmp_path):
    """Base weights, then fine-tuning with weights a category; wrong input is one line."""
    pytest.importorskip("torch", reason="training needs the train extra")
    samples = ROOT / "memstore" / "samples" / "narratives.json"
    shared = (
        samples,
        "--neurons",
        30,
        "--epochs",
        30,
        "--batch",
        50,
        "--cache",
        tmp_path / "cache",
    )
    text = ("train", *shared, "--architecture", "sparse_memory_text")
    memstore(*text, "--out", tmp_path / "base")
    weigh = ("--weigh", "Routine=1:2", "--weigh", "Strong Emotional=2:0.5")
    memstore(*text, "--out", tmp_path / "tuned", "--base", tmp_path / "base", *weigh)
    measured = memstore(
        "evaluate", tmp_path / "tuned", samples, "--cache", tmp_path / "cache", "--json"
    )
    figures = json.loads(measured.stdout)["measures"]["tuned"]
    assert figures["fvu"] is None
    assert 0 < figures["readout_fvu"] < 1
    memstore("init", tmp_path / "own.db", "--sae", tmp_path / "tuned")
    memstore("insert", tmp_path / "own.db", "A quiet morning.")
    for option, value, says in (
        ("--weigh", "Routine=1", "'Routine=1'"),
        ("--weigh", "Holiday=1:1", "'Holiday'"),
        ("--repeat", "Routine=0", "'Routine=0'"),
        ("--repeat", "Holiday=2", "'Holiday'"),
        ("--base", tmp_path / "no", "no"),
    ):
        refused = memstore(*text, "--out", tmp_path / "x", option, value, ok=False)
        assert "Traceback" not in refused.stderr
        last = refused.stderr.strip().splitlines()[-1]
        assert last.startswith("memstore: ")
        assert says in last


def test_training_from_the_shell_makes_an_encoder_that_works(tmp_path):
    """train, evaluate, init with it, insert, and a neuron below the new number of neurons."""
    pytest.importorskip("torch", reason="training needs the train extra")
    out, samples = tmp_path / "sae", ROOT / "memstore" / "samples" / "narratives.json"
    options = ("--cache", tmp_path / "cache", "--json")
    trained = memstore(
        "train",
        samples,
        "--out",
        out,
        "--neurons",
        40,
        "-k",
        5,
        "--epochs",
        20,
        "--repeat",
        "Routine=2",
        *options,
    )
    evaluated = memstore("evaluate", out, samples, "--held-out", *options)
    assert json.loads(trained.stdout) == json.loads(evaluated.stdout)["measures"]["sae"]
    memstore("init", tmp_path / "own.db", "--sae", out)
    memstore("insert", tmp_path / "own.db", "A quiet morning.")
    assert "0 to 39" in memstore("top", tmp_path / "own.db", 40, ok=False).stderr
    assert memstore("search", tmp_path / "own.db", "calm", "--by", "trace").returncode == 0


def test_lenses_in_the_shell(store):
    """Saved, listed, asked, filtered by, removed; a wrong name is one line."""
    saved = memstore("lens", "save", store, "calm", "2*450 - 207").stdout
    assert saved.startswith("calm: -207 +2.0*450, holds for ")
    listed = json.loads(memstore("lens", "list", store, "--json").stdout)
    names = {lens["name"]: lens["holds"] for lens in listed}
    assert {"calm", "routine", "emotional", "chaotic"} <= names.keys()
    own = json.loads(memstore("list", store, "--holds", "calm", "-n", "0", "--json").stdout)
    assert len(own) == names["calm"]
    found = memstore("composite", store, "calm", "--json").stdout
    assert found == memstore("composite", store, "2*450 - 207", "--json").stdout
    assert memstore("lens", "remove", store, "calm").stdout == "calm is no lens now\n"
    failed = memstore("composite", store, "calm", ok=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("memstore: no neuron is called 'calm'")
    failed = memstore("lens", "learn", store, "Nothing", ok=False)
    assert failed.stderr.startswith("memstore: 0 memories of 'Nothing'")


def test_a_deletion_is_shown_before_it_is_done(store):
    """--dry-run deletes nothing and says what would go; then the same command without it does."""
    count = len(json.loads(memstore("list", store, "-n", "0", "--json").stdout))
    told = json.loads(memstore("delete", store, "--holds", "104", "--dry-run", "--json").stdout)
    assert 0 < told["would_delete"] < count
    assert memstore("delete", store, "--holds", "104", "--dry-run").stdout.startswith(
        f"{told['would_delete']} would be deleted"
    )
    gone = json.loads(memstore("delete", store, "--holds", "104", "--yes", "--json").stdout)
    assert gone == {"deleted": told["would_delete"]}


def test_what_is_new_is_told_at_insert(store):
    """The id comes first, as ever; then what is new."""
    shown = memstore("insert", store, "The compiler misses a semicolon.", "--novelty").stdout
    lines = shown.splitlines()
    assert lines[0].isdigit()
    assert any(line.startswith("first time: N") for line in lines)
    assert len(lines) < 12
    assert lines[-1].startswith("nearest: memory ")


def test_diverse_hits_are_among_ten_times_as_many(store):
    """Other than the first k, and none from further down."""
    plain = json.loads(memstore("search", store, "rain", "-k", "30", "--json").stdout)
    few = json.loads(memstore("search", store, "rain", "-k", "3", "--diverse", "--json").stdout)
    assert len(few) == 3
    assert {hit["id"] for hit in few} <= {hit["id"] for hit in plain}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("memstore top diary.db grie", "plain,grief"),
        ("memstore composite diary.db +grief-rout", "plain,+grief-routine"),
        ("memstore composite diary.db 0.5*Laughi", "plain,0.5*Laughing"),
        ("memstore neuron diary.db laughin", "plain,laughing"),
        ("memstore list --holds grie", "plain,grief"),
    ],
)
def test_the_shell_completes_names(words, expected):
    """As bash asks for them."""
    done = subprocess.run(
        [sys.executable, "-m", "memstore"],
        env={
            **os.environ,
            "COMP_WORDS": words,
            "COMP_CWORD": "3",
            "_MEMSTORE_COMPLETE": "bash_complete",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert expected in lines
    typed = words.rpartition(" ")[2]
    assert all(line.removeprefix("plain,").startswith(typed) for line in lines)
    assert not any(" " in line for line in lines)


@pytest.mark.parametrize(
    "typed", ["grief\\ -rout", "crying\\ a", "'crying\\ a", "3>0.1\\ &\\ !cry"]
)
def test_what_cannot_be_completed_is_left_as_it_is(typed):
    """Shells divide at blanks: a name that has one, or comes after one, is not offered."""
    done = subprocess.run(
        [sys.executable, "-m", "memstore"],
        env={
            **os.environ,
            "COMP_WORDS": f"memstore composite diary.db {typed}",
            "COMP_CWORD": "3",
            "_MEMSTORE_COMPLETE": "bash_complete",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
