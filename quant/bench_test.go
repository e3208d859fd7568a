package quant

import (
	"math/rand/v2"
	"testing"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// MB/s of float32 weights, on all cores (-cpu 1 for one).
func BenchmarkQuantise(b *testing.B) {
	const rows, columns = 1024, 4096
	values := make([]float32, rows*columns)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range values {
		values[i] = float32(0.02 * r.NormFloat64())
	}
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(4 * rows * columns)
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, c := range []FourBit{{Type: NormalFloat}, {Type: NormalFloat, DoubleQuant: true}, {Type: Float4}} {
		name := string(c.Type)
		if c.DoubleQuant {
			name += "-double"
		}
		run(name, func() error { _, err := c.Quantise(values, []int{rows, columns}, safetensors.F32); return err })
		t, err := c.Quantise(values, []int{rows, columns}, safetensors.F32)
		if err != nil {
			b.Fatal(err)
		}
		run(name+"-back", func() error { _, err := t.Dequantise(); return err })
	}
	run("int8", func() error { _, err := QuantiseInt8(values, []int{rows, columns}, safetensors.F32); return err })
}
