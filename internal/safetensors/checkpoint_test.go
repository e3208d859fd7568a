package safetensors

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// model writes a folder: shard name to tensor names, and the index text.
func model(t *testing.T, index string, shards map[string][]string) string {
	t.Helper()
	dir := t.TempDir()
	for shard, names := range shards {
		var tensors []Tensor
		for _, name := range names {
			tensors = append(tensors, tensor(t, name, F32, 2))
		}
		require.NoError(t, Write(filepath.Join(dir, shard), nil, tensors))
	}
	if index != "" {
		require.NoError(t, os.WriteFile(filepath.Join(dir, IndexName), []byte(index), 0o666))
	}
	return dir
}

func weightMap(pairs ...string) string {
	text := `{"metadata":{"total_size":1},"weight_map":{`
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf("%q:%q", pairs[i], pairs[i+1])
	}
	return text + "}}"
}

func TestOpenIndexed(t *testing.T) {
	two := map[string][]string{"s1.safetensors": {"a", "c"}, "s2.safetensors": {"b"}}
	for name, dir := range map[string]string{
		"index":               model(t, weightMap("a", "s1.safetensors", "b", "s2.safetensors", "c", "s1.safetensors"), two),
		"not listed is found": model(t, weightMap("a", "s1.safetensors", "b", "s2.safetensors"), two),
		"single file first":   model(t, weightMap("x", "../../x"), map[string][]string{SingleName: {"a", "b", "c"}}),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := OpenIndexed(dir)
			require.NoError(t, err)
			require.Equal(t, []string{"a", "b", "c"}, c.Names())
			require.Equal(t, dir, c.Dir())
			for _, name := range c.Names() {
				info, ok := c.Info(name)
				require.True(t, ok)
				require.Equal(t, TensorInfo{name, F32, []int{2}, info.Offset, 8}, info)
				b, err := c.Bytes(name)
				require.NoError(t, err)
				require.Equal(t, pattern(t, F32, 2), b)
				require.NoError(t, c.Float32s(name, make([]float32, 2)))
				c.Release(name)
			}
			_, err = c.Bytes("d")
			require.ErrorContains(t, err, `tensor "d": the checkpoint has no such tensor`)
			require.Error(t, c.Float32s("d", nil))
			_, ok := c.Info("d")
			require.False(t, ok)
			require.NoError(t, c.Close())
			_, err = c.Bytes("a")
			require.ErrorIs(t, err, os.ErrClosed)
		})
	}
}

func TestShardNames(t *testing.T) {
	dir := model(t, weightMap("a", "s2.safetensors", "b", "s1.safetensors", "c", "s2.safetensors"), nil)
	names, err := ShardNames(filepath.Join(dir, IndexName))
	require.NoError(t, err)
	require.Equal(t, []string{"s1.safetensors", "s2.safetensors"}, names)
	_, err = ShardNames(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestOpenIndexedRefuses(t *testing.T) {
	s1 := map[string][]string{"s1.safetensors": {"a"}}
	for name, tc := range map[string]struct {
		dir, want string
	}{
		"missing folder":       {filepath.Join(t.TempDir(), "none"), "no such file"},
		"a file":               {filepath.Join(golden, "odd.safetensors"), "it is a file, want a folder with model.safetensors or"},
		"nothing":              {t.TempDir(), "has neither model.safetensors nor model.safetensors.index.json"},
		"other names only":     {model(t, "", s1), "nor model.safetensors.index.json; it has s1.safetensors"},
		"not JSON":             {model(t, "{", s1), "index.json: not JSON"},
		"empty index":          {model(t, " ", s1), "index.json: not JSON"},
		"no weight_map":        {model(t, `{"metadata":{}}`, s1), "no weight_map"},
		"empty weight_map":     {model(t, weightMap(), s1), "no weight_map, or an empty one"},
		"weight_map of lists":  {model(t, `{"weight_map":{"a":["s1.safetensors"]}}`, s1), `shard of "a": want a string`},
		"duplicate tensor":     {model(t, weightMap("a", "s1.safetensors", "a", "s1.safetensors"), s1), `key "a" comes twice`},
		"duplicate weight_map": {model(t, `{"weight_map":{},"weight_map":{}}`, s1), `key "weight_map" comes twice`},
		"git lfs":              {model(t, "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", s1), "Git LFS pointer"},
		"shard missing":        {model(t, weightMap("a", "s1.safetensors", "b", "s2.safetensors"), s1), `shard "s2.safetensors": safetensors: open`},
		"tensor missing":       {model(t, weightMap("a", "s1.safetensors", "b", "s1.safetensors"), s1), `tensor "b" is not in its shard "s1.safetensors" nor in any other`},
		"tensor elsewhere": {model(t, weightMap("a", "s2.safetensors", "b", "s1.safetensors"),
			map[string][]string{"s1.safetensors": {"a"}, "s2.safetensors": {"b"}}), `tensor "a" is in shard "s1.safetensors", the index says "s2.safetensors"`},
		"tensor in two": {model(t, weightMap("a", "s1.safetensors", "b", "s2.safetensors"),
			map[string][]string{"s1.safetensors": {"a"}, "s2.safetensors": {"a", "b"}}), `tensor "a" is in two shards`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := OpenIndexed(tc.dir)
			require.Nil(t, c)
			require.ErrorContains(t, err, tc.want)
		})
	}
	for _, path := range []string{"../x", "/etc/passwd", "a/../../x", `..\\x`, `C:\\x`, "C:x", "", "..", "x\\u0000"} {
		_, err := OpenIndexed(model(t, `{"weight_map":{"a":"`+path+`"}}`, s1))
		require.ErrorContains(t, err, "leads out of the folder", path)
	}
	pickle := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(pickle, "pytorch_model.bin"), nil, 0o666))
	_, err := OpenIndexed(pickle)
	require.ErrorContains(t, err, "pytorch_model.bin, which is a PyTorch pickle")
}
