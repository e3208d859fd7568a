package tokenizer

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// behavior says what becomes of the matches of a Split.
type behavior int

const (
	removed behavior = iota
	isolated
	mergedWithPrevious
	mergedWithNext
	contiguous
)

// parseBehavior returns missing for the empty string.
func parseBehavior(s string, missing behavior) (behavior, error) {
	switch s {
	case "":
		return missing, nil
	case "Removed":
		return removed, nil
	case "Isolated":
		return isolated, nil
	case "MergedWithPrevious":
		return mergedWithPrevious, nil
	case "MergedWithNext":
		return mergedWithNext, nil
	case "Contiguous":
		return contiguous, nil
	}
	return 0, fmt.Errorf("behavior is %q, wanted Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous", s)
}

// finder reports matches and what lies between them, in order, covering s.
type finder interface {
	find(s string, report func(start, end int, match bool))
}

// splitter cuts where its finder matches.
type splitter struct {
	finder   finder
	behavior behavior
	invert   bool // what does not match counts as match
}

func newSplit(c *preTokenizerConfig) (preTokenizer, error) {
	if c.Pattern == nil || c.Behavior == "" {
		return nil, errors.New("no pattern or no behavior")
	}
	behavior, err := parseBehavior(c.Behavior, isolated)
	if err != nil {
		return nil, err
	}
	switch {
	case c.Pattern.String != nil:
		return &splitter{literalFinder(*c.Pattern.String), behavior, c.Invert}, nil
	case c.Pattern.Regex == nil:
		return nil, errors.New("pattern is neither String nor Regex")
	}
	if scan := knownScanner(*c.Pattern.Regex); scan != nil {
		// Known patterns match everywhere: the matches are the pieces.
		if behavior == isolated || behavior == removed && c.Invert {
			return scanSplit(scan), nil
		}
		return &splitter{scanFinder(scan), behavior, c.Invert}, nil
	}
	f, err := newRegexFinder(*c.Pattern.Regex)
	return &splitter{f, behavior, c.Invert}, err
}

func (p *splitter) split(s string, first bool, yield pieceFunc) {
	emit := func(start, end int) {
		if end > start {
			yield(s[start:end], first && start == 0)
		}
	}
	switch p.behavior {
	case removed:
		p.finder.find(s, func(start, end int, match bool) {
			if match == p.invert {
				emit(start, end)
			}
		})
	case isolated:
		p.finder.find(s, func(start, end int, _ bool) { emit(start, end) })
	default:
		p.splitMerged(s, emit)
	}
}

// splitMerged joins each match with a neighbour. A match after a match stands
// alone, except in contiguous, where they join.
func (p *splitter) splitMerged(s string, emit func(start, end int)) {
	from, to, any, wasMatch := 0, 0, false, false
	var lastMatch bool // the open piece ends in a match that waits for its next
	p.finder.find(s, func(start, end int, match bool) {
		match = match != p.invert
		var join bool
		switch p.behavior {
		case contiguous:
			join = any && match == wasMatch
		case mergedWithPrevious:
			join = any && match && !wasMatch
		case mergedWithNext:
			join = any && !match && lastMatch
		}
		if !join {
			if any {
				emit(from, to)
			}
			from = start
		}
		to, any, wasMatch, lastMatch = end, true, match, match
	})
	if any {
		emit(from, to)
	}
}

// scanSplit yields the consecutive pieces of a scanner.
type scanSplit scanner

func (scan scanSplit) split(s string, first bool, yield pieceFunc) {
	for i := 0; i < len(s); {
		end := scan(s, i)
		yield(s[i:end], first && i == 0)
		i = end
	}
}

// scanFinder makes a finder of a scanner that matches everywhere.
type scanFinder scanner

func (scan scanFinder) find(s string, report func(start, end int, match bool)) {
	for i := 0; i < len(s); {
		end := scan(s, i)
		report(i, end, true)
		i = end
	}
}

// runeFinder matches single characters.
type runeFinder func(rune) bool

func (is runeFinder) find(s string, report func(start, end int, match bool)) {
	last := 0
	for i, r := range s {
		if !is(r) {
			continue
		}
		if last < i {
			report(last, i, false)
		}
		last = i + utf8.RuneLen(r)
		report(i, last, true)
	}
	if last < len(s) {
		report(last, len(s), false)
	}
}

// literalFinder matches a fixed text.
type literalFinder string

func (f literalFinder) find(s string, report func(start, end int, match bool)) {
	last := 0
	for f != "" {
		i := strings.Index(s[last:], string(f))
		if i < 0 {
			break
		}
		if i > 0 {
			report(last, last+i, false)
		}
		last += i + len(f)
		report(last-len(f), last, true)
	}
	if last < len(s) {
		report(last, len(s), false)
	}
}

// wordFinder matches \w+|[^\w\s]+.
type wordFinder struct{}

func (wordFinder) find(s string, report func(start, end int, match bool)) {
	start, kind := 0, -1
	for i, r := range s {
		k := wordKind(r)
		if k != kind && kind >= 0 {
			report(start, i, kind != 0)
			start = i
		}
		kind = k
	}
	if start < len(s) {
		report(start, len(s), kind != 0)
	}
}

// regexFinder matches a regular expression that no scanner knows.
type regexFinder struct{ re *regexp2.Regexp }

// newRegexFinder compiles a pattern written for Oniguruma with Ruby's syntax, in
// which ^ and $ stand for the ends of lines.
func newRegexFinder(pattern string) (finder, error) {
	re, err := regexp2.Compile(pattern, regexp2.Multiline)
	if err != nil {
		return nil, fmt.Errorf("regular expression: %w", err)
	}
	return &regexFinder{re}, nil
}

func (f *regexFinder) find(s string, report func(start, end int, match bool)) {
	last, at, atRune := 0, 0, 0
	// seek turns an index in runes into one in bytes; indices only grow.
	seek := func(index int) int {
		for atRune < index {
			at += runeLen(s[at:])
			atRune++
		}
		return at
	}
	m, err := f.re.FindStringMatch(s)
	for any := false; m != nil && err == nil; m, err = f.re.FindNextMatch(m) {
		start := seek(m.Index)
		end := seek(m.Index + m.Length)
		if any && start == end && start == last {
			continue // Oniguruma's iterator: no empty match right after a match
		}
		if last < start {
			report(last, start, false)
		}
		report(start, end, true)
		last, any = end, true
	}
	if last < len(s) {
		report(last, len(s), false)
	}
}
