import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
)

from ragbench.errors import RagbenchError
from ragbench.generation import local
from ragbench.generation.decoding import can_decode
from ragbench.generation.local import complete, longest_input, render, token_counter
from ragbench.generation.prompts import Message

WINDOW = 8
SIZES = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 512, "eos_token_id": 1, "bos_token_id": 1,
    "pad_token_id": 1,
}  # fmt: skip


def talk(length: int, seed: int = 0) -> list[Message]:
    """Return a conversation of about `length` made-up words, each one token of the tiny tokenizer."""
    chance = random.Random(f"{length} {seed}")
    made_up = [chance.choice("bdgk") + chance.choice("ae") + chance.choice("bdgklmn") for _ in range(length)]
    return [{"role": "system", "content": "bab"}, {"role": "user", "content": " ".join(made_up)}]


TALKS = [talk(length) for length in (5, 60, 1, 33, 34, 90, 2)]


def ask(talks: list[list[Message]], model: Path, new: int = 10, **settings) -> list:
    settings = {"device": "cpu", "dtype": "float32", **settings}
    return complete(talks, model=str(model), max_new_tokens=new, **settings)


def texts(completions: list) -> list[str]:
    return [completion.text for completion in completions]


def plain_tokens(talks: list[list[Message]], folder: Path, new: int, ends: tuple[int, ...]) -> list[list[int]]:
    """Decode greedily without batches, padding or a cache: the whole text is read again for every token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for messages in talks:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text)["input_ids"]
        start = len(ids)
        while len(ids) < start + new and (len(ids) == start or ids[-1] not in ends):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        rows.append(ids[start:])
    return rows


def plainly(talks: list[list[Message]], folder: Path, new: int = 10, ends: tuple[int, ...] = ()) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in plain_tokens(talks, folder, new, ends)]


def save(config: PretrainedConfig, folder: Path, tokenizer: Path, seed: int = 3) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8)  # so that the next token depends on more than the last one
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def windowed(tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(MistralConfig(**SIZES, sliding_window=WINDOW), tmp_path_factory.mktemp("windowed"), tiny_generator)


@pytest.fixture
def copied(tiny_generator: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_generator, tmp_path / "copied"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("settings", [{}, {"batch_rows": 2}, {"batch_rows": 1}, {"batch_tokens": 1}])
def test_answers_are_right_and_in_the_order_of_the_questions(tiny_generator: Path, settings: dict):
    completions = ask(TALKS, tiny_generator, **settings)
    assert texts(completions) == plainly(TALKS, tiny_generator)
    count = token_counter(str(tiny_generator))
    heads = count("system bab user assistant")
    assert [c.prompt_tokens for c in completions] == [heads + count(messages[1]["content"]) for messages in TALKS]


def test_no_questions_give_no_answers(tiny_generator: Path):
    assert ask([], tiny_generator) == []


def test_equal_questions_get_equal_answers(tiny_generator: Path):
    first, other, again = ask([TALKS[0], TALKS[1], TALKS[0]], tiny_generator)
    assert first == again != other


def test_an_answer_cut_at_the_limit_says_length(tiny_generator: Path):
    assert [(c.finish_reason, c.completion_tokens) for c in ask(TALKS[:2], tiny_generator, 3)] == [("length", 3)] * 2


def test_an_answer_ends_at_any_end_token_of_the_generation_config(tiny_generator: Path, copied: Path):
    free = plain_tokens(TALKS, tiny_generator, 10, ())
    ends = (1, free[1][4], free[3][0])
    edit_json(copied / "generation_config.json", eos_token_id=list(ends))
    completions = ask(TALKS, copied)
    assert texts(completions) == plainly(TALKS, tiny_generator, ends=ends)
    assert (completions[3].finish_reason, completions[3].completion_tokens) == ("stop", 1)
    assert {c.finish_reason for c in completions} == {"stop", "length"}


def test_the_second_call_computes_nothing_and_loads_no_model(tiny_generator: Path, copied: Path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    first = ask(TALKS, tiny_generator)
    monkeypatch.setattr(local.AutoModelForCausalLM, "from_pretrained", refuse)
    assert ask(TALKS[::-1], copied) == first[::-1]  # the same content elsewhere; `seconds` would differ if computed
    with pytest.raises(AssertionError, match="loaded"):
        ask([talk(7)], copied)


def test_only_new_questions_are_computed(tiny_generator: Path):
    first = ask(TALKS[:3], tiny_generator)
    second = ask(TALKS, tiny_generator)
    assert second[:3] == first
    assert texts(second) == plainly(TALKS, tiny_generator)


def test_another_length_limit_is_answered_anew(tiny_generator: Path):
    assert [c.completion_tokens for c in ask(TALKS[:2], tiny_generator, 4)] == [4, 4]
    assert [c.completion_tokens for c in ask(TALKS[:2], tiny_generator, 9)] == [9, 9]


def test_a_changed_question_or_instruction_is_answered_anew(tiny_generator: Path):
    talks = [TALKS[1], talk(60, seed=1), [{"role": "system", "content": "dek"}, TALKS[1][1]]]
    one_by_one = [ask([messages], tiny_generator)[0] for messages in talks]
    assert texts(one_by_one) == plainly(talks, tiny_generator)
    assert len({completion.seconds for completion in one_by_one}) == 3


def test_another_model_is_answered_anew(tiny_generator: Path, tmp_path: Path):
    other = save(LlamaConfig(**SIZES), tmp_path / "other", tiny_generator)
    assert texts(ask(TALKS, tiny_generator)) == plainly(TALKS, tiny_generator)
    assert texts(ask(TALKS, other)) == plainly(TALKS, other) != plainly(TALKS, tiny_generator)


def test_a_model_whose_weights_were_replaced_in_place_is_loaded_again(tiny_generator: Path, copied: Path):
    before = texts(ask(TALKS, copied))
    save(LlamaConfig(**SIZES), copied, tiny_generator)
    assert texts(ask(TALKS, copied)) == plainly(TALKS, copied) != before


def test_a_tokenizer_replaced_in_place_is_loaded_again(copied: Path):
    before = ask(TALKS[:1], copied)[0].prompt_tokens
    (copied / "chat_template.jinja").write_text("{{ messages[0]['content'] }} {{ messages[1]['content'] }}")
    assert ask(TALKS[:1], copied)[0].prompt_tokens < before


@pytest.mark.parametrize("kind", [MistralConfig, Gemma3TextConfig])
def test_models_with_sliding_windows_fall_back_to_generate_and_answer_rightly(tiny_generator, tmp_path: Path, kind):
    folder = save(kind(**SIZES, sliding_window=WINDOW), tmp_path / "model", tiny_generator)
    assert not can_decode(AutoModelForCausalLM.from_pretrained(folder))
    completions = ask(TALKS, folder)
    assert texts(completions) == plainly(TALKS, folder)
    assert {(c.finish_reason, c.completion_tokens) for c in completions} == {("length", 10)}


def test_the_fallback_ends_answers_at_their_end_token(windowed: Path, tmp_path: Path):
    folder = Path(shutil.copytree(windowed, tmp_path / "model"))
    ends = (1, plain_tokens(TALKS[5:6], folder, 10, ())[0][3])
    edit_json(folder / "generation_config.json", eos_token_id=list(ends))
    completions = ask(TALKS, folder)
    assert texts(completions) == plainly(TALKS, folder, ends=ends)
    assert (completions[5].finish_reason, completions[5].completion_tokens) == ("stop", 4)


@pytest.mark.parametrize("fixture", ["tiny_generator", "windowed"])
def test_sampling_settings_of_the_model_do_not_change_greedy_answers(request, tmp_path: Path, fixture: str):
    folder = Path(shutil.copytree(request.getfixturevalue(fixture), tmp_path / "model"))
    edit_json(folder / "generation_config.json", do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0)
    assert texts(ask(TALKS, folder)) == plainly(TALKS, folder)


@pytest.mark.parametrize("fixture", ["tiny_generator", "windowed"])
def test_a_model_without_any_end_token_answers_up_to_the_limit(request, tmp_path: Path, fixture: str):
    folder = Path(shutil.copytree(request.getfixturevalue(fixture), tmp_path / "model"))
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / name, eos_token_id=None, pad_token_id=None)
    edit_json(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id is None
    assert [c.completion_tokens for c in ask(TALKS, folder)] == [10] * len(TALKS)


def test_a_tokenizer_without_a_pad_token_makes_no_difference(tiny_generator: Path, copied: Path):
    edit_json(copied / "tokenizer_config.json", pad_token=None)
    assert AutoTokenizer.from_pretrained(copied).pad_token is None
    assert texts(ask(TALKS, copied)) == plainly(TALKS, tiny_generator)


def test_a_model_without_a_chat_template_reads_instruction_and_question(copied: Path):
    (copied / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(copied)
    assert tokenizer.chat_template is None
    text = render(tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1. [p1] Why?"}])
    assert text.index("Be brief.") < text.index("1. [p1] Why?") and "system" not in text
    completions = ask(TALKS, copied)
    assert [c.prompt_tokens for c in completions] == [len(tokenizer(render(tokenizer, t))["input_ids"]) for t in TALKS]
    assert len(set(texts(completions))) > 1


def test_a_chat_template_that_knows_no_system_role_gets_the_instruction_with_the_question(copied: Path):
    (copied / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<model>"
    )
    tokenizer = AutoTokenizer.from_pretrained(copied)
    text = render(tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    assert text.startswith("<user> Be brief.") and text.endswith("Why? <model>")


def test_a_prompt_that_just_fits_the_model_is_answered_and_one_token_more_names_the_parameters(tiny_generator: Path):
    heads = token_counter(str(tiny_generator))("system bab user assistant")
    fitting = talk(1024 - heads - 4)
    assert ask([fitting], tiny_generator, 4)[0].prompt_tokens == 1020
    with pytest.raises(RagbenchError, match=r"1025.*1024") as caught:
        ask([fitting], tiny_generator, 5)
    for name in ("generator_max_context_tokens", "generator_contexts", "generator_max_new_tokens"):
        assert name in str(caught.value)


def test_the_longest_input_is_what_a_prompt_and_its_answer_may_take(tiny_generator: Path):
    limit = longest_input(str(tiny_generator))
    assert limit == 1024
    heads = token_counter(str(tiny_generator))("system bab user assistant")
    assert ask([talk(limit - heads - 4)], tiny_generator, 4)[0].completion_tokens == 4
    with pytest.raises(RagbenchError):
        ask([talk(limit - heads - 4)], tiny_generator, 5)


@pytest.mark.parametrize(("config", "limit"), [(GPT2Config(n_positions=77), 77), (BloomConfig(), None)])
def test_the_longest_input_is_known_under_its_other_name_or_not_at_all(tmp_path: Path, config, limit: int | None):
    config.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    assert longest_input(str(tmp_path / "model")) == limit


def test_the_longest_input_of_a_model_that_is_not_there_is_an_error_that_names_it():
    with pytest.raises(RagbenchError, match="no/such/model"):
        longest_input("no/such/model")


def test_tokens_are_counted_without_special_tokens(tiny_generator: Path):
    count = token_counter(str(tiny_generator))
    assert [count(text) for text in ("", "bab", "bab dek gop", "b#")] == [0, 1, 3, 2]


CHILD = """
import json, sys
from ragbench.generation.local import complete
talks, model = json.load(sys.stdin)
complete(talks, model=model, max_new_tokens=80, dtype="float32", device="cpu", batch_rows=2)
"""


def kill_when_shown(child: subprocess.Popen, shown: str) -> str:
    """Read the child's progress bar until it shows this, then `kill -9`; return all that was written."""
    text = ""
    while shown not in text and (character := child.stderr.read(1)):
        text += character
    child.send_signal(signal.SIGKILL)
    return text + child.stderr.read()


def test_kill_9_loses_at_most_one_batch_and_the_resumed_answers_are_the_same(tiny_generator, own_cache, monkeypatch):
    talks = [talk(length) for length in range(3, 23)]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TQDM_MININTERVAL": "0"},
    )  # fmt: skip
    child.stdin.write(json.dumps([talks, str(tiny_generator)]))
    child.stdin.close()
    progress = kill_when_shown(child, " 4/20")
    assert child.wait() == -signal.SIGKILL, progress
    reported = max(count for count in range(0, 21, 2) if f" {count}/20" in progress)
    with sqlite3.connect(own_cache / "answers.sqlite") as connection:
        kept = connection.execute("select count(*) from entries").fetchone()[0]
    assert 4 <= reported <= kept <= reported + 2 < 20
    resumed = ask(talks, tiny_generator, 80, batch_rows=2)
    monkeypatch.setenv("RAGBENCH_CACHE", str(own_cache.with_name("undisturbed")))
    undisturbed = ask(talks, tiny_generator, 80, batch_rows=2)
    assert [vars(c) | {"seconds": 0} for c in resumed] == [vars(c) | {"seconds": 0} for c in undisturbed]
