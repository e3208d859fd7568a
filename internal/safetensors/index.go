package safetensors

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// ShardNames returns the shards that a model.safetensors.index.json lists,
// sorted, each once, as slash-separated paths that stay inside its folder.
func ShardNames(indexPath string) ([]string, error) {
	text, err := readIndex(indexPath)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %s: %w", indexPath, err)
	}
	shardOf, err := parseIndex(text)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %s: %w", indexPath, err)
	}
	return slices.Compact(slices.Sorted(maps.Values(shardOf))), nil
}

// readIndex reads the index file, but not one of absurd size.
func readIndex(path string) ([]byte, error) {
	m, err := openMapping(path, true)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if m.size > maxHeader {
		return nil, fmt.Errorf("the index has %d bytes, more than the allowed %d", m.size, maxHeader)
	}
	text, err := m.view(0, m.size)
	if err != nil {
		return nil, err
	}
	return text, sniff(text)
}

// parseIndex returns the shard of each tensor.
func parseIndex(text []byte) (map[string]string, error) {
	var shardOf map[string]string
	err := parseJSON(text, func(dec *json.Decoder, key string) error {
		if key != "weight_map" {
			var skipped json.RawMessage
			if err := dec.Decode(&skipped); err != nil {
				return notJSON(err)
			}
			return nil
		}
		shardOf = map[string]string{}
		return eachMember(dec, func(name string) error {
			tok, err := dec.Token()
			if err != nil {
				return notJSON(err)
			}
			shard, ok := tok.(string)
			if !ok {
				return fmt.Errorf("weight_map: shard of %s: want a string, got %s", quote(name), tokenText(tok))
			}
			shardOf[name] = shard
			return checkShardPath(shard)
		})
	})
	switch {
	case err != nil:
		return nil, err
	case len(shardOf) == 0:
		return nil, errors.New("no weight_map, or an empty one")
	}
	return shardOf, nil
}

// checkShardPath keeps shards inside the folder on every system. (Symbolic
// links are followed: a hub cache consists of them.)
func checkShardPath(shard string) error {
	if strings.ContainsAny(shard, "\\:\x00") || !filepath.IsLocal(filepath.FromSlash(shard)) {
		return fmt.Errorf("weight_map: shard path %s leads out of the folder", quote(shard))
	}
	return nil
}
