package safetensors

import (
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A header of 640 bytes begins as a pickle does, one of 15392 as a page of HTML.
func TestHeaderLengthsThatLookLikeOtherFiles(t *testing.T) {
	for _, length := range []int{640, 15392} {
		path := filepath.Join(t.TempDir(), "model.safetensors")
		tensor := Tensor{Name: "x", DType: F32, Shape: []int{1}, Bytes: make([]byte, 4)}
		for filler := 1; ; filler++ {
			require.Less(t, filler, length)
			var b strings.Builder
			require.NoError(t, Encode(&b, map[string]string{"f": strings.Repeat("x", filler)}, []Tensor{tensor}))
			if binary.LittleEndian.Uint64([]byte(b.String())[:8]) == uint64(length) {
				require.NoError(t, Write(path, map[string]string{"f": strings.Repeat("x", filler)}, []Tensor{tensor}))
				break
			}
		}
		f, err := Open(path)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
}
