"""CounterFact and DAFSet: neighbours keep the old answer, prompts for fluency and consistency are kept beside the edit."""

from kedit_hub.edits import Probe
from kedit_hub.records.shapes import read_one

from .fixtures import records


def test_the_original_keeps_what_fluency_and_consistency_need():
    first, second = records("counterfact-original.json")
    assert first.edit.prompt == "Quill & Sons was founded in the city of"
    assert first.edit.rephrases == ("It rained all day. Quill & Sons originated in", "Quill & Sons, which started in")
    assert first.edit.locality == (
        Probe("Brass Lantern was founded in the city of", "Emmer", "neighbour"),
        Probe("Hob Press came from", "Emmer", "neighbour"),
    )
    assert (first.edit.relation, first.extras.target_id) == ("P740", "Q9001")
    assert first.extras.generation_prompts == ("Quill & Sons was founded in", "The founders of Quill & Sons lived in")
    assert first.extras.attribute_prompts == ("Vask Radio was founded in the city of",)
    assert second.edit.prompt == "The mother tongue of Ada Œhlén is" and second.edit.locality == ()


def test_the_flat_form_loses_its_padding():
    _, second = records("counterfact.json")
    assert second.edit.ground_truth == "サックス"
    assert second.edit.locality == (Probe("Ola Fenn plays the", "harp", "neighbour"),)


def test_a_neighbour_without_an_answer_is_asked_what_the_base_says():
    _, second = records("dafset.json")
    assert second.edit.locality == (Probe("Ada Œhlén works for", None, "neighbour"),)


def test_noise_of_at_most_thirty_words_stands_before_rephrase_and_neighbour():
    [record] = records("dafset-robust.json")
    assert record.edit.prompt == "The anthem of Norland is"
    assert record.edit.rephrases == ("Snow fell on the hills above the town. Which song is the anthem of Norland?",)
    [probe] = record.edit.locality
    noise, _, question = probe.prompt.partition(". ")
    assert question == "The anthem of Sudland is" and len(noise.split()) == 30 and noise.endswith("thirty")
    assert len(record.extras.prefixes) == 2 and record.extras.prefixes[1].endswith("thirty-two")


def test_every_kind_of_noise_stands_before_some_rephrases_and_some_neighbours():
    prefixes = ["Long ago it rained.", "The capital of Norland is Pell.", "What a day."]
    rephrased, kept = [], []
    for number in range(60):
        record = {
            "prompt": f"The anthem of Land{number} is",
            "target_new": "Long Dark Road",
            "subject": f"Land{number}",
            "rephrase_prompt": "Which song?",
            "locality_prompt": "The anthem of Sudland is",
            "locality_ground_truth": "Bright Fields",
            "prefix": prefixes,
        }
        edit = read_one(record, "dafset-robust")
        assert edit == read_one(record, "dafset-robust")
        rephrased += [prefix for prefix in prefixes if edit.rephrases[0].startswith(prefix)]
        kept += [prefix for prefix in prefixes if edit.locality[0].prompt.startswith(prefix)]
    assert len(rephrased) == len(kept) == 60 and all(a != b for a, b in zip(rephrased, kept))
    assert all(10 <= found.count(prefix) <= 30 for found in (rephrased, kept) for prefix in prefixes)
    alone = read_one({**record, "prefix": prefixes[:1]}, "dafset-robust")
    assert alone.rephrases[0].startswith(prefixes[0]) and alone.locality[0].prompt.startswith(prefixes[0])
