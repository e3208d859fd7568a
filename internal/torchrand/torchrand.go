// Package torchrand draws the numbers that PyTorch's generator on the CPU draws, for
// files that hold a seed in place of values.
package torchrand

// The Mersenne twister MT19937 (Matsumoto and Nishimura, "Mersenne Twister", 1998).
const (
	size  = 624
	shift = 397
)

// Generator is torch.Generator(device="cpu").
type Generator struct {
	state [size]uint32
	next  int
}

// New is torch.Generator().manual_seed(seed), of which the lower 32 bits count.
func New(seed int64) *Generator {
	g := &Generator{next: size}
	g.state[0] = uint32(uint64(seed))
	for i := uint32(1); i < size; i++ {
		last := g.state[i-1]
		g.state[i] = 1812433253*(last^last>>30) + i
	}
	return g
}

// Uint32 returns the next 32 bits.
func (g *Generator) Uint32() uint32 {
	if g.next == size {
		g.refill()
	}
	y := g.state[g.next]
	g.next++
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	return y ^ y>>18
}

func (g *Generator) refill() {
	for i := range g.state {
		y := g.state[i]&0x80000000 | g.state[(i+1)%size]&0x7fffffff
		x := g.state[(i+shift)%size] ^ y>>1
		if y&1 == 1 {
			x ^= 0x9908b0df
		}
		g.state[i] = x
	}
	g.next = 0
}

// Uniform is Tensor.uniform_(from, to) of a float32 tensor. It is what PyTorch computes
// where it uses fused multiply-add, as it does on every x86 processor with AVX2; without,
// a last bit may differ.
func (g *Generator) Uniform(values []float32, from, to float64) {
	low := float32(from)
	width := float32(to) - low
	for i := range values {
		// 24 bits times 24 bits is exact in float64.
		values[i] = float32(float64(float32(g.Uint32()&(1<<24-1))/(1<<24))*float64(width) + float64(low))
	}
}

// Skip leaves out n values.
func (g *Generator) Skip(n int) {
	for range n {
		g.Uint32()
	}
}
