package backend_test

import (
	"fmt"
	"log"

	"github.com/gopeft/gopeft/internal/backend"
)

func ExampleOpen() {
	b, err := backend.Open("go")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Finalize()
	fmt.Println(backend.Kind(b), backend.ComputeDType(b))

	_, err = backend.Open("gpu")
	fmt.Println(err)
	// Output:
	// go Float32
	// backend: no backend is named "gpu"; use go, xla, xla:cpu, xla:cuda or xla:/path/to/plugin.so (argument or GOMLX_BACKEND)
}
