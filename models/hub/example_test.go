package hub_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/models/hub"
)

// A path is taken as it is; an id is looked up in the cache, and downloaded
// unless that is forbidden.
func ExampleResolve() {
	work, err := os.MkdirTemp("", "hub")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(work)

	dir, err := hub.Resolve(context.Background(), work, hub.Options{})
	fmt.Println(dir == work, err)

	offline := hub.Options{CacheDir: filepath.Join(work, "cache"), Offline: true}
	_, err = hub.Resolve(context.Background(), "org/no-such-model", offline)
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// true <nil>
	// true
}
