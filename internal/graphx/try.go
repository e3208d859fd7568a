package graphx

import "fmt"

// Try runs f and returns the panic that graph building or a backend raised in it
// as an error: GoMLX reports most errors by panicking, and none may reach a user.
func Try(f func() error) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case error:
			err = r
		default:
			err = fmt.Errorf("%v", r)
		}
	}()
	return f()
}
