package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

const (
	bosToken, bosID = "<s>", 0
	eosToken, eosID = "</s>", 1
)

// makeTokenizer learns byte-level BPE from the texts and writes it to dir as Hugging
// Face does: the two special tokens, the 256 bytes, then one token a merge.
func makeTokenizer(dir string, texts []string, vocabulary int) error {
	ids := map[string]int{bosToken: bosID, eosToken: eosID}
	for b := range 256 {
		ids[string(byteRune(byte(b)))] = len(ids)
	}
	if vocabulary < len(ids) {
		return fmt.Errorf("vocabulary: want at least %d tokens, got %d", len(ids), vocabulary)
	}
	merges := [][2]string{}
	for _, m := range learnMerges(texts, vocabulary-len(ids)) {
		ids[m.left+m.right] = len(ids)
		merges = append(merges, [2]string{m.left, m.right})
	}
	if len(ids) != vocabulary {
		return fmt.Errorf("vocabulary: the text gives only %d tokens, want %d", len(ids), vocabulary)
	}
	files := map[string]any{
		"tokenizer.json": tokenizerJSON(ids, merges),
		"tokenizer_config.json": map[string]any{
			"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bosToken, "eos_token": eosToken,
			"clean_up_tokenization_spaces": false, "model_max_length": positions,
		},
	}
	for name, content := range files {
		data, err := json.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}

type object = map[string]any

// tokenizerJSON puts <s> before every text; the loader of training data adds </s>.
func tokenizerJSON(ids map[string]int, merges [][2]string) object {
	special := func(id int, content string) object {
		return object{"id": id, "content": content, "special": true,
			"single_word": false, "lstrip": false, "rstrip": false, "normalized": false}
	}
	bos := object{"SpecialToken": object{"id": bosToken, "type_id": 0}}
	sequence := func(id string, segment int) object { return object{"Sequence": object{"id": id, "type_id": segment}} }
	byteLevel := object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
	return object{
		"version": "1.0", "truncation": nil, "padding": nil, "normalizer": nil,
		"added_tokens":  []object{special(bosID, bosToken), special(eosID, eosToken)},
		"pre_tokenizer": byteLevel, "decoder": byteLevel,
		"post_processor": object{
			"type":   "TemplateProcessing",
			"single": []object{bos, sequence("A", 0)},
			"pair":   []object{bos, sequence("A", 0), sequence("B", 1)},
			"special_tokens": object{
				bosToken: object{"id": bosToken, "ids": []int{bosID}, "tokens": []string{bosToken}},
			},
		},
		"model": object{
			"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": ids, "merges": merges,
		},
	}
}
