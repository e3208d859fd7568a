package hub

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/safetensors"
)

const (
	adapterConfig  = "adapter_config.json"
	adapterWeights = "adapter_model.safetensors"
	// adapterEncoder holds the network of some adapters, see peft.Param.Beside.
	adapterEncoder = "prompt_encoder.safetensors"
	modelConfig    = "config.json"
)

// smallFiles are wanted if the repository has them, besides the weights.
var smallFiles = []string{
	modelConfig, adapterConfig, "generation_config.json", "tokenizer*.json", "special_tokens_map.json",
	"added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.*", safetensors.IndexName,
}

// wanted picks the files to have from a repository's listing; the shards of an
// index come later, when the index is here.
func (s *settings) wanted(listing []string) ([]string, error) {
	var files, others []string
	for _, name := range listing {
		if err := checkFileName(name); err != nil {
			return nil, fmt.Errorf("the hub's list of files: %w", err)
		}
		if strings.HasSuffix(name, ".bin") || strings.HasSuffix(name, ".gguf") || strings.HasSuffix(name, ".safetensors") {
			others = append(others, name)
		}
		if slices.ContainsFunc(smallFiles, func(p string) bool { ok, _ := path.Match(p, name); return ok }) {
			files = append(files, name)
		}
	}
	has := func(name string) bool { return slices.Contains(listing, name) }
	if !has(modelConfig) && !has(adapterConfig) {
		return nil, fmt.Errorf("the repository has neither %s nor %s: it holds no model: %w", modelConfig, adapterConfig, fs.ErrNotExist)
	}
	single, adapter := has(safetensors.SingleName), has(adapterConfig) && has(adapterWeights)
	if single || s.NoWeights {
		files = slices.DeleteFunc(files, func(name string) bool { return name == safetensors.IndexName })
	}
	if s.NoWeights {
		return files, nil
	}
	if single {
		files = append(files, safetensors.SingleName)
	}
	if adapter {
		files = append(files, adapterWeights)
		if has(adapterEncoder) {
			files = append(files, adapterEncoder)
		}
	}
	if !single && !has(safetensors.IndexName) && !adapter {
		return nil, fmt.Errorf("the repository has none of %s, %s and %s (weight files it has: %s): %w",
			safetensors.SingleName, safetensors.IndexName, adapterWeights, cmp.Or(strings.Join(others, ", "), "none"), fs.ErrNotExist)
	}
	return files, nil
}

// checkFileName refuses names that would be written outside of the snapshot.
func checkFileName(name string) error {
	if strings.ContainsAny(name, "\\:\x00") || !filepath.IsLocal(filepath.FromSlash(name)) || path.Clean(name) != name || name == "." {
		return fmt.Errorf("file name %q leads out of the folder or is not canonical", name)
	}
	return nil
}

// missing returns the first file that the snapshot lacks to be usable, and ""
// if it lacks none. What it cannot know without the hub, such as whether there
// is a tokenizer, it leaves to whoever opens the folder.
func (s *settings) missing(snapshot string) (string, error) {
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(snapshot, filepath.FromSlash(name)))
		return err == nil
	}
	switch {
	case !has(modelConfig) && !has(adapterConfig):
		return modelConfig, nil
	case s.NoWeights:
		return "", nil
	case has(safetensors.SingleName), has(adapterConfig) && has(adapterWeights):
		return "", nil
	case has(adapterConfig) && !has(modelConfig):
		return adapterWeights, nil
	}
	shards, err := safetensors.ShardNames(filepath.Join(snapshot, safetensors.IndexName))
	if errors.Is(err, fs.ErrNotExist) {
		return safetensors.SingleName, nil
	}
	if err != nil {
		return "", err
	}
	for _, shard := range shards {
		if !has(shard) {
			return shard, nil
		}
	}
	return "", nil
}
