import json
import math
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from retroformer.config import PolicyConfig
from retroformer.errors import DataError, PolicyError
from retroformer.files import hash_directory
from retroformer.policies.agent import Decision
from retroformer.policies.checkpoints import build, load
from retroformer.policies.layout import Layout
from tiny import tiny_policy, told

CONFIG = PolicyConfig(model="", width=16, layers=1, heads=2)
WORDS = ("go", "left", "turn_left", "red_ball", "red", "ball", "f2r0", "red_ball@f2r0", "w0", "w1")
SEEN = told([("red_ball@f2r0 go", ("left", "turn_left"), 0), ("unheard", ("left", "go"), 1)])


def scores(policy, seen=SEEN):
    with torch.no_grad():
        return policy.score(policy.collate(policy.windows(seen)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    policy = build(CONFIG, WORDS, seed=3, layout=Layout(condition_on_return=True))
    policy.save(folder)
    return policy, folder


def test_saving_and_loading_changes_neither_scores_nor_bytes(saved, tmp_path):
    policy, folder = saved
    loaded = load(folder)
    torch.testing.assert_close(scores(loaded), scores(policy), rtol=0, atol=0)
    assert loaded.layout == policy.layout
    assert loaded.version == hash_directory(folder)[:16]
    loaded.save(tmp_path)
    assert hash_directory(tmp_path) == hash_directory(folder)


def test_it_is_an_ordinary_checkpoint(saved):
    policy, folder = saved
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer("go left unheard", return_tensors="pt").input_ids
    assert tokens.tolist() == [list(policy.encode("go left unheard"))]
    assert tokenizer.decode(tokens[0]) == "go left unheard"
    torch.testing.assert_close(model(tokens).logits, policy.model(tokens).logits)


def test_words_that_it_does_not_know_stay_apart_and_can_be_chosen():
    policy = build(CONFIG, WORDS, seed=3, layout=Layout.words(ended=True))
    assert len(policy.encode("red_ball")) == 1
    assert len(policy.encode("red_balls")) == 2, "a known word begins it"
    spelled = {policy.encode(word) for word in ("pea", "peas", "sea", "p ea", "pe a", "lef", "\u00e9")}
    assert len(spelled) == 7
    unknown = policy.tokenizer.unk_token_id
    assert policy.encode("\u00e9") == (unknown,)
    assert policy.encode("x" * 600) == (unknown,)
    assert all(unknown not in tokens for tokens in spelled - {(unknown,)})
    seen = told([("w0", ("go pea", "go peas", "go sea"), 1)])
    assert scores(policy, seen)[0, 0].exp().sum() == pytest.approx(1, abs=1e-5)


def test_the_same_seed_builds_the_same_policy_in_any_order_of_words():
    first, again, other = (
        build(CONFIG, words, seed=seed) for words, seed in ((WORDS, 3), (WORDS[::-1], 3), (WORDS, 4))
    )
    same = zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in same)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


def test_words_start_as_the_sum_of_their_parts():
    policy = build(CONFIG, WORDS, seed=0)
    table = policy.model.get_input_embeddings().weight

    def vector(word):
        (token,) = policy.encode(word)
        return table[token]

    torch.testing.assert_close(vector("red_ball"), (vector("red") + vector("ball")) / math.sqrt(2))
    torch.testing.assert_close(vector("red_ball@f2r0"), (vector("red_ball") + vector("f2r0")) / math.sqrt(2))
    layer = policy.model.model.layers[0].self_attn
    assert torch.equal(layer.q_proj.weight, layer.k_proj.weight)


def test_a_fresh_policy_is_nearly_uniform_over_what_is_admissible():
    torch.testing.assert_close(scores(build(CONFIG, WORDS, seed=0)).exp(), torch.full((1, 2, 2), 0.5), atol=0.1, rtol=0)


def test_the_return_to_reach_is_a_word_of_a_conditioned_policy(saved):
    policy, _ = saved
    for reached in (-1.0, -0.01, 0.0, 0.55, 1.0):
        assert policy.tokenizer.unk_token_id not in policy.encode(*policy.layout.opening("go", reached))


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (12, 4)])
def test_a_width_that_the_heads_do_not_divide_is_refused(width, heads):
    with pytest.raises(PolicyError, match=f"policy.width {width} must be an even multiple of policy.heads {heads}"):
        build(PolicyConfig(model="", width=width, layers=1, heads=heads), WORDS, seed=0)


def test_a_tokenizer_of_another_model_is_refused(saved, tmp_path):
    _, folder = saved
    shutil.copytree(folder, tmp_path / "mixed")
    build(CONFIG, [*WORDS, "one", "more", *map(str, range(40))], seed=0).tokenizer.save_pretrained(tmp_path / "mixed")
    with pytest.raises(PolicyError, match=r"mixed: the tokenizer has 232 tokens, the model 222; they do not belong"):
        load(tmp_path / "mixed")


def test_what_cannot_be_loaded_is_named(saved, tmp_path):
    with pytest.raises(PolicyError, match=r"cannot load a language model from .*nowhere"):
        load(tmp_path / "nowhere")
    _, folder = saved
    for name, content, error, message in (
        ("config.json", "{", PolicyError, "cannot load a language model"),
        ("model.safetensors", "cut", PolicyError, "cannot load a language model"),
        ("retroformer.json", "{", DataError, "is not JSON"),
        ("retroformer.json", '{"layout": {"tsk": ""}}', PolicyError, "does not hold a layout"),
        ("retroformer.json", "[]", PolicyError, "does not hold a layout"),
    ):
        broken = tmp_path / f"broken-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, broken)
        (broken / name).write_text(content)
        with pytest.raises(error, match=message):
            load(broken)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 32, r"the weights .* have another shape than config\.json says"),
        ("num_hidden_layers", 2, r"there are no weights model\.layers\.1\..*, which config\.json asks for"),
        ("num_attention_heads", 3, "cannot load a language model"),
        ("num_hidden_layers", "two", "cannot load a language model"),
    ],
)
def test_a_config_of_other_weights_is_refused(saved, tmp_path, key, value, message, capfd):
    folder = shutil.copytree(saved[1], tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(PolicyError, match=message):
        load(folder)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "{0}", r"layout\.task is '\{0\}', expected text with \{task\} in it"),
        ("task", "{", r"layout\.task is"),
        ("task", 5, r"layout\.task is 5"),
        ("observation", "{task}", r"layout\.observation is '\{task\}', expected text with \{observation\} in it"),
        ("action", "{action.x}", r"layout\.action is"),
        ("action", "always this", r"layout\.action is 'always this'"),
        ("target_return", "high", r"layout\.target_return is 'high', expected a number"),
    ],
)
def test_a_layout_that_cannot_be_filled_in_is_refused(saved, tmp_path, key, value, message):
    folder = shutil.copytree(saved[1], tmp_path / "other")
    settings = json.loads((folder / "retroformer.json").read_text())
    settings["layout"][key] = value
    (folder / "retroformer.json").write_text(json.dumps(settings))
    with pytest.raises(PolicyError, match=rf"retroformer\.json: {message}"):
        load(folder)


@pytest.mark.parametrize(
    ("offline", "message"),
    [
        (True, "it is not a local folder, and not whole in the local cache; with HF_HUB_OFFLINE=0"),
        (False, "no network"),
    ],
)
def test_a_model_that_is_not_here_says_how_it_may_be_had(monkeypatch, offline, message):
    def unreachable(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    monkeypatch.setattr("retroformer.policies.checkpoints.HF_HUB_OFFLINE", offline)
    with pytest.raises(PolicyError, match=f"from nobody/nothing: {message}"):
        load("nobody/nothing")


def test_a_foreign_model_is_told_in_sentences(tmp_path):
    policy = tiny_policy("gpt2")
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path).layout == Layout.sentences()
    assert load(tmp_path, layout=Layout()).layout == Layout()


def test_for_actions_of_several_words_a_head_of_the_later_layers_begins_by_looking_back():
    config = PolicyConfig(model="", width=64, layers=2, heads=4)
    words = [f"w{place}" for place in range(500)]

    def looks_back(policy):
        policy.model.set_attn_implementation("eager")
        tokens = torch.randint(2, len(words), (4, 60), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            attentions = policy.model(tokens, output_attentions=True).attentions
        return [float(layer[:, 0].diagonal(-1, -2, -1)[:, 10:].mean()) for layer in attentions]

    plain, turned = (looks_back(build(config, words, seed=0, phrases=phrases)) for phrases in (False, True))
    assert turned[1] > 4 * plain[1]
    assert turned[0] < 2 * plain[0]


def test_a_tokenizer_with_no_pad_no_end_and_no_chat_template_serves(tmp_path):
    words = {word: index for index, word in enumerate(("Task:", "Observation:", "Action:", *WORDS))}
    raw = Tokenizer(models.WordLevel(words, unk_token="go"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert (bare.pad_token_id, bare.eos_token_id, bare.chat_template) == (None, None, None)
    tiny_policy("llama").model.save_pretrained(tmp_path)
    bare.save_pretrained(tmp_path)
    policy = load(tmp_path)
    assert policy.layout == Layout.sentences()
    agent = policy.agent(2)
    decisions = [
        Decision(slot, 0, "w0 w1", observation, ("left", "turn_left go"), 0.5)
        for slot, observation in enumerate(("red_ball w1", "w1"))
    ]
    for decision, choice in zip(decisions, agent.act(decisions), strict=True):
        actions = decision.admissible_actions
        seen = told([(decision.observation, actions, actions.index(choice.action))])
        with torch.no_grad():
            scores = policy.score(policy.collate(policy.windows(seen)))
        torch.testing.assert_close(scores[0, 0].exp(), torch.tensor(choice.probabilities), atol=1e-5, rtol=0)
