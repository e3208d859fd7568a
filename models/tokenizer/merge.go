package tokenizer

// bpeScratch is the working memory of one merge run.
type bpeScratch struct {
	vals []uint64 // of the pair (i, next of i): rank<<32 | merged id, or noMerge
	next []int32
	prev []int32
	heap []uint64 // rank<<32 | position
}

const (
	noMerge = ^uint64(0)
	// smallWord is the length from which a heap beats searching the best pair
	// anew for every merge.
	smallWord = 24
)

// mergeAll merges ids in place, the pair of lowest rank first, the leftmost of
// equals, and returns how many are left. The time is O(n log n).
func (m *bpe) mergeAll(ids []int32, s *bpeScratch) int {
	if len(ids) < 2 {
		return len(ids)
	}
	s.vals = s.vals[:0]
	any := false
	for i := range len(ids) - 1 {
		val := m.pair(ids[i], ids[i+1])
		any = any || val != noMerge
		s.vals = append(s.vals, val)
	}
	switch {
	case !any:
		return len(ids)
	case len(ids) <= smallWord:
		return m.mergeSmall(ids, s.vals)
	}
	return m.mergeHeap(ids, s)
}

func (m *bpe) pair(left, right int32) uint64 {
	if val, ok := m.merges.get(pairKey(left, right)); ok {
		return val
	}
	return noMerge
}

// mergeSmall searches for the best pair before every merge.
func (m *bpe) mergeSmall(ids []int32, vals []uint64) int {
	for {
		best, at := noMerge, -1
		for i, val := range vals {
			// Values of one rank are equal, so < keeps the leftmost.
			if val < best {
				best, at = val, i
			}
		}
		if at < 0 {
			return len(ids)
		}
		ids[at] = int32(uint32(best))
		ids = append(ids[:at+1], ids[at+2:]...)
		vals = append(vals[:at], vals[at+1:]...)
		if at > 0 {
			vals[at-1] = m.pair(ids[at-1], ids[at])
		}
		if at < len(vals) {
			vals[at] = m.pair(ids[at], ids[at+1])
		}
	}
}

// mergeHeap keeps the candidates in a heap and the symbols in a linked list.
func (m *bpe) mergeHeap(ids []int32, s *bpeScratch) int {
	n := len(ids)
	s.vals = append(s.vals, noMerge)
	s.next, s.prev, s.heap = s.next[:0], s.prev[:0], s.heap[:0]
	for i := range n {
		s.next = append(s.next, int32(i+1))
		s.prev = append(s.prev, int32(i-1))
		if s.vals[i] != noMerge {
			s.heap = append(s.heap, s.vals[i]&^0xFFFFFFFF|uint64(i))
		}
	}
	for i := len(s.heap)/2 - 1; i >= 0; i-- {
		siftDown(s.heap, i)
	}
	for len(s.heap) > 0 {
		top := s.pop()
		at := int32(uint32(top))
		// The pair at this position may have changed since it was pushed.
		if val := s.vals[at]; val == noMerge || val>>32 != top>>32 {
			continue
		}
		ids[at] = int32(uint32(s.vals[at]))
		gone := s.next[at]
		after := s.next[gone]
		s.next[at] = after
		s.vals[gone] = noMerge
		if prev := s.prev[at]; prev >= 0 {
			s.set(prev, m.pair(ids[prev], ids[at]))
		}
		if int(after) < n {
			s.prev[after] = at
			s.set(at, m.pair(ids[at], ids[after]))
		} else {
			s.vals[at] = noMerge
		}
	}
	kept := 0
	for i := int32(0); int(i) < n; i = s.next[i] {
		ids[kept] = ids[i]
		kept++
	}
	return kept
}

// set notes the value of the pair that starts at i and queues it.
func (s *bpeScratch) set(i int32, val uint64) {
	s.vals[i] = val
	if val != noMerge {
		s.heap = append(s.heap, val&^0xFFFFFFFF|uint64(uint32(i)))
		siftUp(s.heap)
	}
}

func (s *bpeScratch) pop() uint64 {
	top := s.heap[0]
	last := len(s.heap) - 1
	s.heap[0] = s.heap[last]
	s.heap = s.heap[:last]
	siftDown(s.heap, 0)
	return top
}

func siftUp(h []uint64) {
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if h[parent] <= h[i] {
			return
		}
		h[parent], h[i] = h[i], h[parent]
		i = parent
	}
}

func siftDown(h []uint64, i int) {
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
