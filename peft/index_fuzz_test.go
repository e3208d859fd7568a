package peft

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"version": 1, "adapters": [{"name": "a", "peft_type": "LORA", "folder": "a", "frozen": true}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		index, err := parseIndex(data)
		if err != nil {
			return
		}
		require.NotEmpty(t, index.Adapters)
		for _, entry := range index.Adapters {
			require.NoError(t, checkName(entry.Name))
			require.True(t, filepath.IsLocal(filepath.FromSlash(entry.Folder)))
		}
	})
}
