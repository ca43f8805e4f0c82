"""The client, against a small server that misbehaves in the ways real ones do."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dmsrec_jax.errors import InputError
from tests.llm_stage.engines.catalogue import TITLES, questions, settings

pytest.importorskip("httpx")
from llm_stage.engines import openai_engine
from llm_stage.engines.base import Answer, UnfinishedError
from llm_stage.engines.openai_engine import build
from llm_stage.prompts import Chat


class Server:
    """Answers requests with what ``reply(path, body, count)`` returns: status and JSON, or None to hang up."""

    def __init__(self, reply):
        self.requests, self.headers, self.at_once, self.most_at_once = [], [], 0, 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                    server.requests.append((self.path, body))
                    server.headers.append(dict(self.headers))
                    count = len(server.requests)
                answer = reply(self.path, body, count)
                with lock:
                    server.at_once -= 1
                if answer is None:
                    return self.connection.close()
                status, value = answer
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve(monkeypatch):
    """Starts a `Server`; pauses between tries are short."""
    monkeypatch.setattr(openai_engine, "FIRST_PAUSE", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    started = []

    def start(reply):
        started.append(Server(reply))
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()


def said(text, cached=0, **choice):
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": cached}}
    return 200, {"choices": [{"message": {"content": text}, **choice}], "usage": usage}


def engine(catalogue, server, **flags):
    return build(settings(catalogue, "openai", model="m", base_url=server.url, concurrency=3, **flags), catalogue)


def test_structured_answers(catalogue, serve):
    server = serve(lambda path, body, count: said('{"intents": [2, 1, 2]}', cached=64))
    asked = questions()
    answers = engine(catalogue, server).answer(asked)
    for row, answer in enumerate(answers):
        assert answer.picks == (asked.candidates[row][1], asked.candidates[row][0])
        assert answer[2:] == (0, 1, 100, 64, 7, 0)
    assert 1 <= server.most_at_once <= 3
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    schema = body["response_format"]["json_schema"]["schema"]["properties"]["intents"]
    assert schema["items"]["enum"] == list(range(1, 13))
    assert (body["temperature"], body["model"], schema["maxItems"]) == (0, "m", 5)


def test_answers_stay_in_order_however_late_they_come(catalogue, serve):
    gate = threading.Event()

    def reply(path, body, count):
        first = body["messages"][1]["content"].startswith(beginning)
        if first:
            gate.wait(5)
        gate.set()
        return said("[1]" if first else "[2]")

    asked = questions()
    client = engine(catalogue, serve(reply))
    beginning = client.chat(client.questions(asked)[0], 200).user[:80]
    answers = client.answer(asked)
    assert answers[0].picks == (asked.candidates[0][0],)
    assert answers[1].picks == (asked.candidates[1][1],)


@pytest.mark.parametrize(
    ("reason", "cut"), [("length", True), ("content_filter", True), ("stop", False), (None, False), ([], False)]
)
def test_cut_answers_are_known(catalogue, serve, reason, cut):
    client = engine(catalogue, serve(lambda path, body, count: said("Tent", finish_reason=reason)), decode="free")
    assert client.model.chat([Chat("", "?")], 4, None)[0].cut == cut


def test_busy_endpoints_are_asked_again(catalogue, serve):
    bad = [(429, {}), (503, b"<html>"), None, (500, {"error": "x"}), (200, b"no json"), (200, [])]
    bad += [(200, {"choices": [choice]}) for choice in ({}, {"message": None}, {"message": {"content": [{}]}})]
    bad += [(200, said("[1]")[1] | {"usage": "none"}), (200, b"[" * 100_000), (503, b"[" * 100_000)]
    server = serve(lambda path, body, count: bad[count - 1] if count <= len(bad) else said("[1]"))
    answers = engine(catalogue, server, retries=len(bad)).answer(questions(1))
    assert answers[0].picks == (questions(1).candidates[0][0],)
    assert len(server.requests) == len(bad) + 1


def test_models_that_refuse_old_names_are_asked_in_new_ones(catalogue, serve):
    """As OpenAI's do since o1; each name is refused by itself, whatever else the request has."""

    def reply(path, body, count):
        for name, code in (("max_tokens", "unsupported_parameter"), ("temperature", "unsupported_value")):
            if name in body:
                error = {"message": f"Unsupported: '{name}'", "param": name, "code": code}
                return 400, {"error": error | {"type": "invalid_request_error"}}
        return said("[1]")

    server = serve(reply)
    asked = questions()
    answers = engine(catalogue, server, retries=0).answer(asked)
    assert [answer.picks for answer in answers] == [(row[0],) for row in asked.candidates]
    good = [body for _, body in server.requests if not {"max_tokens", "temperature"} & body.keys()]
    assert len(good) == len(answers)
    assert all(body["max_completion_tokens"] > 0 and body["seed"] == 0 for body in good)
    assert len(server.requests) <= len(answers) + 2 * 3  # those under way at once find out each for itself


@pytest.mark.parametrize("error", ["no", None, [], {"param": ["x"], "code": "unsupported"}, {"param": "model"}])
def test_other_refusals_are_told(catalogue, serve, error):
    server = serve(lambda path, body, count: (400, {"error": error}))
    with pytest.raises(InputError, match=r"^--base-url http://127.*: 400: "):
        engine(catalogue, server).answer(questions(1))
    assert len(server.requests) == 1


def test_a_dead_endpoint_is_one_line(catalogue, serve):
    server = serve(lambda path, body, count: (503, {"error": {"message": "over\nloaded"}}))
    with pytest.raises(InputError, match=r"^--base-url http://127.*: 503: over loaded \(after 3 tries\)$"):
        engine(catalogue, server, retries=2).answer(questions(1))
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(InputError, match=r"ConnectError.*\(after 2 tries\)$"):
        engine(catalogue, server, retries=1).answer(questions())


@pytest.mark.parametrize("decode", ["structured", "free", "score"])
def test_one_bad_question_costs_no_other_answer(catalogue, serve, decode):
    """The first one fails, when all others have been asked."""
    asked, others = questions(), []
    all_asked = threading.Event()

    def reply(path, body, count):
        text = body["prompt"][0] if decode == "score" else body["messages"][1]["content"]
        if text == bad:
            all_asked.wait(5)
            return 500, {"error": "assert"}
        others.append(text)
        if len(others) == 7 + (decode == "score"):  # which also asks about titles without a session
            all_asked.set()
        choices = [{"index": n, "logprobs": {"token_logprobs": [None, -1.0]}} for n in range(1 + len(TITLES))]
        return (200, {"choices": choices}) if decode == "score" else said("[1]")

    client = engine(catalogue, serve(reply), decode=decode, retries=0)
    first = client.questions(asked)[0]
    bad = client.prefix(first.session, 200) if decode == "score" else client.chat(first, 200).user
    with pytest.raises(UnfinishedError, match="500: assert") as raised:
        client.answer(asked)
    assert sorted(raised.value.found) == list(range(1, 8))
    assert all(type(answer) is Answer for answer in raised.value.found.values())


def test_slow_endpoints_time_out(catalogue, serve):
    gate = threading.Event()
    server = serve(lambda path, body, count: gate.wait(5) and None)
    with pytest.raises(InputError, match=r"ReadTimeout"):
        engine(catalogue, server, retries=0, timeout=0.1).answer(questions(1))
    gate.set()


def test_refusals_are_not_repeated_and_the_key_is_never_shown(catalogue, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = serve(lambda path, body, count: (401, {"error": {"message": "bad key sk-secret"}}))
    with pytest.raises(InputError, match="401: bad key …; set OPENAI_API_KEY") as raised:
        engine(catalogue, server).answer(questions(1))
    assert "sk-secret" not in str(raised.value)
    assert len(server.requests) == 1
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(engine(catalogue, server).identity)


def test_a_key_is_stripped_and_one_that_no_header_takes_is_refused_unseen(catalogue, serve, monkeypatch):
    server = serve(lambda path, body, count: said("[1]"))
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\r\n")
    engine(catalogue, server).answer(questions(1))
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    for key in ("sk-\nsecret", "sk-sécret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(InputError, match=r"^OPENAI_API_KEY: holds characters that no key has$"):
            engine(catalogue, server)


TOO_LARGE = {  # for 31 new tokens
    "max_tokens is too large: 31. This model supports at most 16 completion tokens": True,
    "'max_tokens' or 'max_completion_tokens' is too large: 31. This model's maximum context length is 31 tokens": True,
    "'max_tokens' or 'max_completion_tokens' is too large: 31. This model's maximum context length is 32 tokens": False,
    "This model's maximum context length is 1,024 tokens. However, you requested 2000 tokens": False,
}


@pytest.mark.parametrize("message", TOO_LARGE)
def test_an_answer_that_no_prompt_fits_beside_is_refused(catalogue, serve, message):
    server = serve(lambda path, body, count: (400, {"error": {"message": message}}))
    client = engine(catalogue, server, max_new_tokens=31)
    if not TOO_LARGE[message]:
        assert client.answer(questions(1))[0].picks == ()
        return
    with pytest.raises(InputError, match=r"; lower --max-new-tokens$"):
        client.answer(questions(1))
    assert len(server.requests) == 1


def test_what_an_endpoint_says_is_shown_without_escape_sequences(catalogue, serve):
    server = serve(lambda path, body, count: (200, {"error": {"message": "no \x1b[31mquota\x07\nleft"}}))
    with pytest.raises(InputError, match=r"200: no \[31mquota left \(after 1 tries\)$"):
        engine(catalogue, server, retries=0).answer(questions(1))


def test_prompts_that_do_not_fit_become_empty_answers(catalogue, serve):
    says = {"error": {"message": "This model's maximum context length is 1024 tokens"}}
    answers = engine(catalogue, serve(lambda path, body, count: (400, says))).answer(questions(2))
    assert [answer.picks for answer in answers] == [(), ()]


@pytest.mark.parametrize("code", ["context_length_exceeded", None])
def test_a_code_says_it_as_well_as_a_message(catalogue, serve, code):
    error = {"message": "Your messages resulted in 300000 tokens.", "code": code}
    client = engine(catalogue, serve(lambda path, body, count: (400, {"error": error})))
    if code:
        assert [answer.picks for answer in client.answer(questions(2))] == [(), ()]
    else:
        with pytest.raises(InputError, match="400: Your messages"):
            client.answer(questions(2))


@pytest.mark.parametrize("number", ["1e30", "1e999", "-5", "2147483648", "NaN", '"7"', "[7]", "7.5", "1" + "0" * 400])
def test_what_is_no_number_of_tokens_counts_as_none(catalogue, serve, number):
    reply = '{"choices": [{"message": {"content": "[1]"}}], "usage": {"prompt_tokens": N, "completion_tokens": N, '
    reply += '"prompt_tokens_details": {"cached_tokens": N}}}'
    server = serve(lambda path, body, count: (200, reply.replace("N", number).encode()))
    answer = engine(catalogue, server, retries=0).answer(questions(1))[0]
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (0, 0, 0)
    assert len(answer.picks) == 1


FILTERED = 400, {"error": {"message": "The prompt triggered a policy", "param": "prompt", "code": "content_filter"}}


@pytest.mark.parametrize("says", [FILTERED, said(None, finish_reason="content_filter")])
def test_what_a_content_filter_refuses_is_an_empty_answer_of_its_own_kind(catalogue, serve, says):
    title = "Clip-On Guitar Tuner"
    server = serve(lambda path, body, count: says if title in body["messages"][1]["content"] else said("[1]"))
    answers = engine(catalogue, server).answer(questions())
    refused = [row for row, answer in enumerate(answers) if answer.refused]
    assert 0 < len(refused) < len(answers) == len(server.requests)
    assert refused == [row for row, answer in enumerate(answers) if not answer.picks]


def test_a_filtered_score_is_one_line(catalogue, serve):
    with pytest.raises(InputError, match="400: The prompt triggered"):
        engine(catalogue, serve(lambda path, body, count: FILTERED), decode="score").answer(questions(1))


@pytest.mark.parametrize("content", [None, "", "[", "nonsense", "[77]", '{"intents": "x"}'])
def test_nonsense_is_counted_never_raised(catalogue, serve, content):
    answers = engine(catalogue, serve(lambda path, body, count: said(content))).answer(questions(1))
    assert answers[0].picks == ()


def test_scores_are_differences_of_echoed_log_probabilities(catalogue, serve):
    def reply(path, body, count):
        assert (path, body["echo"], body["max_tokens"]) == ("/v1/completions", True, 0)
        gain = [3.0 * ("Tent" in p and p.rstrip().endswith("Camping")) - 0.1 * len(p) for p in body["prompt"]]
        choices = [{"index": n, "logprobs": {"token_logprobs": [None, g]}} for n, g in enumerate(gain)]
        return 200, {"choices": choices[::-1], "usage": {"prompt_tokens": 10}}

    asked = questions(1)
    asked.sessions.items[:] = [1, 3, 4]
    asked.candidates[0, :3] = [9, 2, 5]
    answer = engine(catalogue, serve(reply), decode="score", max_intents=2).answer(asked)[0]
    assert answer.picks == (2, 5)  # both end in "Camping", which a tent makes likelier
    assert answer.prompt_tokens == 10


def test_endpoints_without_prompt_log_probabilities_are_named(catalogue, serve):
    server = serve(lambda path, body, count: (200, {"choices": [{"index": 0, "text": "x", "logprobs": None}]}))
    with pytest.raises(InputError, match="gives no log-probabilities of prompts"):
        engine(catalogue, server, decode="score").answer(questions(1))


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "http://localhost:abc/v1", "http://[::1", "http://", "http://:80/v1", "http://a..b/v1"],
)
def test_the_address_must_be_one(catalogue, address):
    with pytest.raises(InputError, match=f"^--base-url {re.escape(address)}: "):
        build(settings(catalogue, "openai", base_url=address), catalogue)


@pytest.mark.parametrize("address", ["http://[::1]:8000/v1", "https://bücher.example/v1", "http://10.0.0.1/v1/"])
def test_addresses_of_all_kinds_are_taken(catalogue, address):
    build(settings(catalogue, "openai", base_url=address), catalogue)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks9://a:1"), ("http_proxy", "foo:bar"), ("NO_PROXY", "[::"), ("SSL_CERT_FILE", "/nowhere/ca")],
)
def test_a_variable_that_the_client_cannot_use_is_named(catalogue, monkeypatch, name, value):
    for other in openai_engine.OF_CLIENT:
        monkeypatch.delenv(other, raising=False)
        monkeypatch.delenv(other.lower(), raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name}: "):
        build(settings(catalogue, "openai"), catalogue)
