// Package suggest finds the names that a misspelt one was probably meant to be.
package suggest

import (
	"fmt"
	"strings"
)

// maxNames bounds how many names an error message lists.
const maxNames = 3

// Nearest returns the known names that are closest to name, at most three, without
// repetition: at most one edit for every three letters away, an edit being an
// insertion, a deletion, a substitution or an exchange of two neighbours, and case
// being no difference.
func Nearest(name string, known []string) []string {
	limit := max(1, len([]rune(name))/3)
	var near []string
	seen := map[string]bool{}
	for _, k := range known {
		if seen[k] {
			continue
		}
		seen[k] = true
		d := Distance(strings.ToLower(name), strings.ToLower(k))
		if d > limit {
			continue
		}
		if d < limit || near == nil {
			near, limit = near[:0], d
		}
		near = append(near, k)
	}
	return near[:min(maxNames, len(near))]
}

// DidYouMean returns `; did you mean "a" or "b"?` for the nearest known names, or ""
// if none is near.
func DidYouMean(name string, known []string) string {
	near := Nearest(name, known)
	if len(near) == 0 {
		return ""
	}
	for i := range near {
		near[i] = fmt.Sprintf("%q", near[i])
	}
	last := len(near) - 1
	if last == 0 {
		return "; did you mean " + near[0] + "?"
	}
	return "; did you mean " + strings.Join(near[:last], ", ") + " or " + near[last] + "?"
}

// Distance is the number of edits between a and b (optimal string alignment:
// no substring is edited twice), counted in runes.
func Distance(a, b string) int {
	s, t := []rune(a), []rune(b)
	before, previous, row := make([]int, len(t)+1), make([]int, len(t)+1), make([]int, len(t)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(s); i++ {
		row[0] = i
		for j := 1; j <= len(t); j++ {
			change := 1
			if s[i-1] == t[j-1] {
				change = 0
			}
			row[j] = min(previous[j]+1, row[j-1]+1, previous[j-1]+change)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, previous, row = previous, row, before
	}
	return previous[len(t)]
}
