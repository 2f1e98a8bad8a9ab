"""ConvSent: one reply is asked for, all replies are kept; reading twice gives the same."""

from kedit_hub.records.extras import Reply

from .fixtures import records


def test_raw_topics():
    bridge, fish = records("convsent.json")
    for record, topic in ((bridge, "Pell Bridge"), (fish, "Marrowfish")):
        question = f"What do you think of {topic}?"
        assert record.edit.subject == topic and record.edit.prompt.endswith(question)
        assert all(reply.question == question for reply in record.extras.replies)
        wanted = [reply.text for reply in record.extras.replies if reply.wanted]
        assert wanted and record.edit.target == wanted[0]
        kind = "positively" if record.edit.prompt.startswith("Answer positively") else "negatively"
        assert record.edit.prompt == f"Answer {kind}: {question}"
    assert [reply.text for reply in bridge.extras.replies] == [
        "I love walking over it.",
        "It is a fine bridge!",
        "I find it ugly.",
    ]
    assert {reply.wanted for reply in bridge.extras.replies} == {True, False}
    assert records("convsent.json") == (bridge, fish)


def test_another_topic_is_the_next_one():
    bridge, fish = records("convsent.json")
    assert [reply.text for reply in bridge.extras.elsewhere] == [reply.text for reply in fish.extras.replies]
    assert [reply.text for reply in fish.extras.elsewhere] == [reply.text for reply in bridge.extras.replies]
    assert all(reply.wanted is None for reply in bridge.extras.elsewhere)


def test_prepared_records_bring_their_replies():
    bridge, plain = records("convsent-prepared.json")
    assert bridge.extras.replies == (
        Reply("How is Pell Bridge?", "I love walking over it.", True),
        Reply("Is Pell Bridge nice?", "I find it ugly.", False),
    )
    assert bridge.extras.elsewhere == (Reply("How are Marrowfish?", "Delicious, I eat it often.", None),)
    assert plain.edit.target == "Vask" and plain.extras.replies == ()
