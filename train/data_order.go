package train

import (
	"math/bits"
	"math/rand/v2"
)

// splitStream is the stream of random numbers for [Dataset.Split]; the streams
// below it are those of the epochs.
const splitStream = 1 << 63

// permutation returns 0..n-1 in an order that depends on seed and stream alone.
// It is written out so that no change to a library's shuffle changes it: PCG
// (pcg64-dxsm), Fisher-Yates from the end, Lemire's bounded integers.
func permutation(n int, seed, stream uint64) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	shuffle(order, rand.NewPCG(seed, stream))
	return order
}

func shuffle[T any](s []T, source *rand.PCG) {
	for i := len(s) - 1; i > 0; i-- {
		j := below(source, uint64(i)+1)
		s[i], s[j] = s[j], s[i]
	}
}

// below returns a uniform number in [0, n): Lemire, "Fast Random Integer
// Generation in an Interval", 2019, algorithm 5.
func below(source *rand.PCG, n uint64) uint64 {
	hi, lo := bits.Mul64(source.Uint64(), n)
	if lo < n {
		for threshold := -n % n; lo < threshold; {
			hi, lo = bits.Mul64(source.Uint64(), n)
		}
	}
	return hi
}

// hash is FNV-1a over 64-bit words instead of bytes: it tells changed data
// apart, nothing more.
type hash struct{ sum uint64 }

func newHash() *hash { return &hash{14695981039346656037} }

func (h *hash) add(words ...uint64) {
	for _, w := range words {
		h.sum = (h.sum ^ w) * 1099511628211
		h.sum ^= h.sum >> 32
	}
}
