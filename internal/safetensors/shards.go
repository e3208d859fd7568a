package safetensors

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/gopeft/gopeft/internal/atomicfile"
)

// DefaultShardSize is Hugging Face's: 5 GB.
const DefaultShardSize = 5_000_000_000

// modelFile matches the weight files of a Hugging Face model.
var modelFile = regexp.MustCompile(`^model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?$`)

// IsModelFile reports whether a name is that of a Hugging Face model's weights, of a
// shard or of the index.
func IsModelFile(name string) bool { return modelFile.MatchString(name) }

// WriteSharded writes a Hugging Face model's weights into the existing folder
// dir: model.safetensors if they fit into maxShardSize bytes, else
// model-00001-of-0000N.safetensors, ... and model.safetensors.index.json.
// maxShardSize 0 is [DefaultShardSize].
//
// Tensors are dealt to shards in the given order as huggingface_hub does: a
// shard ends when the next tensor would make it too large; a tensor larger
// than a shard gets one of its own. Data is called as in [Write].
//
// Each file is written atomically, the index last; after an error the folder
// may have some of the shards. A folder that already has model weights is
// refused, because shards of two models would mix. To write or replace a model
// as a whole, call WriteSharded inside [atomicfile.WriteDir].
func WriteSharded(dir string, metadata map[string]string, tensors []Tensor, maxShardSize int64) error {
	if err := writeSharded(dir, metadata, tensors, maxShardSize); err != nil {
		return fmt.Errorf("safetensors: write model into %s: %w", dir, err)
	}
	return nil
}

func writeSharded(dir string, metadata map[string]string, tensors []Tensor, maxShardSize int64) error {
	if maxShardSize < 0 {
		return fmt.Errorf("shard size %d is negative", maxShardSize)
	}
	if maxShardSize == 0 {
		maxShardSize = DefaultShardSize
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if modelFile.MatchString(e.Name()) {
			return fmt.Errorf("it already has %s", e.Name())
		}
	}
	if _, err := newPlan(metadata, tensors); err != nil {
		return err // before anything is written
	}
	shards, total, err := deal(tensors, maxShardSize)
	if err != nil {
		return err
	}
	if len(shards) == 1 {
		return Write(filepath.Join(dir, SingleName), metadata, shards[0])
	}
	shardOf := map[string]string{}
	for i, shard := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		if err := Write(filepath.Join(dir, name), metadata, shard); err != nil {
			return err
		}
		for _, t := range shard {
			shardOf[t.Name] = name
		}
	}
	text, err := indexJSON(total, shardOf)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, IndexName), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
}

// deal is huggingface_hub's split_state_dict_into_shards_factory. No tensors
// make one empty shard.
func deal(tensors []Tensor, limit int64) (shards [][]Tensor, total int64, err error) {
	var current []Tensor
	size := int64(0)
	for _, t := range tensors {
		info, err := t.Info()
		if err != nil {
			return nil, 0, err
		}
		total += info.Size
		if info.Size > limit {
			shards = append(shards, []Tensor{t})
			continue
		}
		if size+info.Size > limit {
			shards = append(shards, current)
			current, size = nil, 0
		}
		current = append(current, t)
		size += info.Size
	}
	if len(current) > 0 || len(shards) == 0 {
		shards = append(shards, current)
	}
	return shards, total, nil
}

// indexJSON is Python's json.dumps(index, indent=2, sort_keys=True) + "\n",
// up to non-ASCII names, which Python escapes.
func indexJSON(total int64, shardOf map[string]string) ([]byte, error) {
	var index struct {
		Metadata struct {
			TotalSize int64 `json:"total_size"`
		} `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}
	index.Metadata.TotalSize = total
	index.WeightMap = shardOf
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(index)
	return text.Bytes(), err
}
