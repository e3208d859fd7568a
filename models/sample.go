package models

import (
	"cmp"
	"math"
	"slices"
)

// sampler picks ids from logits as transformers' generate does: repetition
// penalty, then temperature, top-k and top-p in this order, then a draw. One
// sampler serves one goroutine.
type sampler struct {
	temperature float64 // 0: the largest logit
	topK        int     // 0: all
	topP        float64 // 0 or 1: all
	penalty     float32 // 1: none

	scores     []float32   // scratch: the penalised logits of one row
	candidates []candidate // scratch
	heap       []float32   // scratch
}

// candidate is an id that may be drawn.
type candidate struct {
	id int32
	p  float64
}

// pick returns the next id of a row. seen are the distinct ids of its prompt and of
// what it generated; u is uniform in [0, 1) and not looked at when greedy.
func (s *sampler) pick(logits []float32, seen []int32, u float64) int32 {
	logits = s.penalised(logits, seen)
	if s.temperature == 0 {
		return argMax(logits)
	}
	return draw(s.distribution(logits), u)
}

// penalised divides the logits of seen ids by the penalty where they are positive
// and multiplies them where they are negative (Keskar et al. 2019,
// arXiv:1909.05858, with the sign handled as in transformers).
func (s *sampler) penalised(logits []float32, seen []int32) []float32 {
	if s.penalty == 1 {
		return logits
	}
	s.scores = append(s.scores[:0], logits...)
	for _, id := range seen {
		if s.scores[id] < 0 {
			s.scores[id] *= s.penalty
		} else {
			s.scores[id] /= s.penalty
		}
	}
	return s.scores
}

// distribution returns the ids that may be drawn and their probabilities, which
// add up to 1. The slice is valid until the next call.
func (s *sampler) distribution(scores []float32) []candidate {
	least := float32(math.Inf(-1))
	if s.topK > 0 && s.topK < len(scores) {
		least = s.kthLargest(scores, s.topK)
	}
	top := float64(slices.Max(scores))
	kept, sum := s.candidates[:0], 0.0
	for id, score := range scores {
		if score < least {
			continue
		}
		// The difference first: a small temperature must not overflow.
		p := math.Exp((float64(score) - top) / s.temperature)
		kept = append(kept, candidate{int32(id), p})
		sum += p
	}
	s.candidates = kept
	if s.topP > 0 && s.topP < 1 {
		kept = nucleus(kept, sum, s.topP)
		sum = 0
		for _, c := range kept {
			sum += c.p
		}
	}
	for i := range kept {
		kept[i].p /= sum
	}
	return kept
}

// nucleus keeps the smallest set of most probable ids whose probabilities reach
// topP together (Holtzman et al. 2020, arXiv:1904.09751); of equals the first ids.
// The probabilities of candidates, whose order it changes, add up to sum.
//
// It is a quickselect by sums: of a vocabulary only what lies around the border is
// sorted.
func nucleus(candidates []candidate, sum, topP float64) []candidate {
	const small = 16
	target := topP * sum
	from, to, reached := 0, len(candidates), 0.0 // the border is in between; what is before from is in
	for to-from > small {
		middle, before := from+partition(candidates[from:to]), 0.0
		for _, c := range candidates[from:middle] {
			before += c.p
		}
		if reached+before >= target {
			to = middle
			continue
		}
		if reached += before + candidates[middle].p; reached >= target {
			return candidates[:middle+1]
		}
		from = middle + 1
	}
	slices.SortFunc(candidates[from:to], func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.p, a.p), cmp.Compare(a.id, b.id))
	})
	for i, c := range candidates[from:to] {
		if reached += c.p; reached >= target {
			return candidates[:from+i+1]
		}
	}
	return candidates[:to]
}

// before orders candidates, the more probable first.
func (c candidate) before(other candidate) bool {
	return c.p > other.p || c.p == other.p && c.id < other.id
}

// partition picks one of at least three candidates, moves those that come before
// it to its left, the others to its right, and returns where it is.
func partition(c []candidate) int {
	last := len(c) - 1
	// The median of three goes to the end.
	for _, pair := range [][2]int{{0, last / 2}, {0, last}, {last, last / 2}} {
		if c[pair[1]].before(c[pair[0]]) {
			c[pair[0]], c[pair[1]] = c[pair[1]], c[pair[0]]
		}
	}
	left := 0
	for i := range last {
		if c[i].before(c[last]) {
			c[i], c[left] = c[left], c[i]
			left++
		}
	}
	c[left], c[last] = c[last], c[left]
	return left
}

// kthLargest returns the k-th largest of values, 1 <= k <= len(values). It keeps
// the k largest so far in a heap whose root is the smallest of them.
func (s *sampler) kthLargest(values []float32, k int) float32 {
	h := append(s.heap[:0], values[:k]...)
	s.heap = h
	for i := k/2 - 1; i >= 0; i-- {
		siftDown(h, i)
	}
	for _, v := range values[k:] {
		if v > h[0] {
			h[0] = v
			siftDown(h, 0)
		}
	}
	return h[0]
}

func siftDown(h []float32, i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h[child+1] < h[child] {
			child++
		}
		if h[i] <= h[child] {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

// draw inverts the distribution function at u.
func draw(candidates []candidate, u float64) int32 {
	below := 0.0
	last := candidates[0].id
	for _, c := range candidates {
		if c.p == 0 {
			continue
		}
		if below += c.p; u < below {
			return c.id
		}
		last = c.id
	}
	return last // rounding left the sum below u
}

// argMax returns the first of the largest values.
func argMax(values []float32) int32 {
	best := 0
	for i, v := range values {
		if v > values[best] {
			best = i
		}
	}
	return int32(best)
}

// logProb is log softmax(logits)[id].
func logProb(logits []float32, id int32) float32 {
	top := float64(slices.Max(logits))
	sum := 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x) - top)
	}
	return float32(float64(logits[id]) - top - math.Log(sum))
}

// uniform is a number in [0, 1) that depends on nothing but its arguments, by the
// finaliser of SplitMix64 (Steele, Lea and Flood 2014).
func uniform(seed, row, step uint64) float64 {
	const golden = 0x9e3779b97f4a7c15
	x := mix64(seed + golden)
	x = mix64(x + golden*(row+1))
	x = mix64(x + golden*(step+1))
	return float64(x>>11) * 0x1p-53
}

func mix64(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
