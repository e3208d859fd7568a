package safetensors

import (
	"bytes"
	"fmt"
	"regexp"
	"unicode"
)

const sniffBytes = 512

var lfsFields = regexp.MustCompile(`(?m)^(oid|size) ([0-9a-z:]{1,80})$`)

// sniff recognises what is found under a .safetensors name when a download
// went wrong, and says what to do. first is the beginning of the file.
func sniff(first []byte) error {
	switch {
	case len(first) > 8 && first[8] == '{':
		return nil // a header's length can look like anything: 640 is a pickle's first bytes
	case len(first) == 0:
		return fmt.Errorf("the file is empty")
	case bytes.HasPrefix(first, []byte("version https://git-lfs.github.com")):
		fields := ""
		for _, m := range lfsFields.FindAllSubmatch(first, 2) {
			fields += fmt.Sprintf(" %s %s", m[1], m[2])
		}
		return fmt.Errorf("this is a Git LFS pointer (%s ), not the weights; run \"git lfs install && git lfs pull\" in its folder, or download the file from the hub", fields)
	case bytes.HasPrefix(bytes.TrimLeftFunc(first, unicode.IsSpace), []byte("<")):
		return fmt.Errorf("this is an HTML or XML page, not weights: the download got an error or login page; fetch the file again")
	case bytes.HasPrefix(first, []byte("PK\x03\x04")), bytes.HasPrefix(first, []byte("\x80\x02")):
		return fmt.Errorf("this is a PyTorch pickle, not safetensors; convert it with safetensors.torch.save_file")
	case bytes.HasPrefix(first, []byte("GGUF")):
		return fmt.Errorf("this is a GGUF file, not safetensors")
	}
	return nil
}
