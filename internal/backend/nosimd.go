//go:build !(amd64 && goexperiment.simd)

package backend

import "io"

func warnSlowExp(io.Writer) {}
