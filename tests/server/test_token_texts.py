"""The texts of single tokens in traces."""

from trimtab_server.vllm.token_texts import TokenTexts


class Pieces:
    """A tokenizer in the manner of SentencePiece: `decode` drops a leading space."""

    pieces = ("\u2581the", "the", "\u2581", b"\xe6")
    decoded = 0

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[i] for i in ids]

    def decode(self, ids):
        self.decoded += 1
        return ["the", "the", "", "\ufffd"][ids[0]]


def test_a_leading_space_is_kept_and_a_text_is_decoded_once():
    tokenizer = Pieces()
    texts = TokenTexts(tokenizer)
    for _ in range(2):
        assert [texts[i] for i in range(4)] == [" the", "the", " ", "\ufffd"]
    assert tokenizer.decoded == 4
