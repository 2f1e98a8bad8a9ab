"""CounterFact and DAFSet: neighbours keep the old answer, prompts for fluency and consistency are kept beside the edit."""

from kedit_hub.edits import Probe

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
