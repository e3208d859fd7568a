package adapters

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/suggest"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// attach finds the targets and which of them are feed-forward. The configuration is
// completed on the way.
func (c IA3Config) attach(base site.Base) (*ia3, error) {
	allowed := peft.NoneUnused
	if c.Reading() {
		allowed = peft.AnyUnused
	}
	if c.TargetModules.IsZero() {
		defaults, ok := DefaultIA3Targets(base.ModelType())
		if !ok {
			return nil, fmt.Errorf("no default target modules for model_type %q: set TargetModules", base.ModelType())
		}
		c.TargetModules, allowed = defaults, max(allowed, peft.TargetsUnused)
	}
	modules := base.Modules()
	targets, counts, err := c.selection().Match(modules, allowed)
	if err != nil {
		return nil, err
	}
	for _, m := range targets {
		if err := wantScalable(m); err != nil {
			return nil, err
		}
	}
	forward, more, err := c.feedforward(base.ModelType(), targets, modules)
	if err != nil {
		return nil, err
	}
	c.FanInFanOut = slices.ContainsFunc(targets, func(m site.Module) bool { return m.Kind == site.Linear && m.Transposed })
	return newIA3(c, targets, forward, append(counts, more...)), nil
}

// wantScalable refuses what peft has no IA3 for.
func wantScalable(m site.Module) error {
	switch {
	case m.Kind == site.Linear:
		return nil
	case m.Kind == site.Convolution && len(m.Conv.Kernel) > 1:
		return nil
	case m.Kind == site.Convolution:
		return fmt.Errorf("target module %q is a convolution over one axis, want two or three", m.Path)
	}
	return fmt.Errorf("target module %q is of kind %s, want a linear layer or a convolution", m.Path, m.Kind)
}

// feedforward says which targets are feed-forward, and completes FeedforwardModules (and
// TargetModules, if all-linear) in a form that Python reads.
func (c *IA3Config) feedforward(modelType string, targets, modules []site.Module) ([]bool, []peft.PatternCount, error) {
	given, chosen := c.FeedforwardModules, !c.FeedforwardModules.IsZero()
	if !chosen {
		defaults, ok := DefaultIA3Feedforward(modelType)
		if !ok {
			return nil, nil, fmt.Errorf("no default feed-forward modules for model_type %q: set FeedforwardModules (peft.Modules() for none)", modelType)
		}
		given = defaults
	}
	forward, counts, err := ends(given, targets)
	if err != nil {
		return nil, nil, err
	}
	c.FeedforwardModules = given
	if c.Reading() {
		return forward, counts, nil
	}
	var used []string
	var unused []error
	for _, n := range counts {
		switch {
		case n.Modules > 0:
			used = append(used, n.Pattern)
		case chosen:
			unused = append(unused, unusedFeedforward(given, n.Pattern, targets))
		}
	}
	if len(unused) > 0 {
		return nil, nil, errors.Join(unused...)
	}
	switch {
	case c.TargetModules.IsAllLinear() || !chosen && c.TargetModules.Names() != nil:
		err = c.spell(modelType, targets, modules, forward)
	case !chosen: // names beside a regular expression need not be targets by name
		c.FeedforwardModules = peft.Modules(used...)
	default:
		err = c.checkSubset()
	}
	return forward, counts, err
}

// ends says which targets are feed-forward, by peft's rules
// (IA3Model._check_target_module_feedforward), and how many each entry has found.
func ends(entries peft.Targets, targets []site.Module) ([]bool, []peft.PatternCount, error) {
	const option = "feedforward_modules"
	forward := make([]bool, len(targets))
	var counts []peft.PatternCount
	names := entries.Names()
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		n := 0
		for i, m := range targets {
			if strings.HasSuffix(m.Path, name) {
				forward[i] = true
				n++
			}
		}
		counts = append(counts, peft.PatternCount{Option: option, Pattern: name, Modules: n})
	}
	pattern := entries.Pattern()
	if pattern == "" {
		return forward, counts, nil
	}
	forward, err := peft.FullMatches(pattern, paths(targets))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", option, err)
	}
	n := 0
	for _, f := range forward {
		if f {
			n++
		}
	}
	return forward, []peft.PatternCount{{Option: option, Pattern: pattern, Modules: n}}, nil
}

func paths(modules []site.Module) []string {
	list := make([]string, len(modules))
	for i, m := range modules {
		list[i] = m.Path
	}
	return list
}

// unusedFeedforward is the error for an entry that peft would pass over.
func unusedFeedforward(entries peft.Targets, entry string, targets []site.Module) error {
	if entries.Pattern() != "" {
		return fmt.Errorf("feedforward module pattern %q matches none of the target modules; it must match a whole path such as %q", entry, targets[0].Path)
	}
	var last []string
	for _, m := range targets {
		_, name := cutLast(m.Path)
		last = append(last, name)
	}
	return fmt.Errorf("feedforward module %q matches none of the target modules%s", entry, suggest.DidYouMean(entry, last))
}

// spell names the feed-forward modules by entries of TargetModules, since Python refuses
// configurations in which they are none.
func (c *IA3Config) spell(modelType string, targets, modules []site.Module, forward []bool) error {
	if c.TargetModules.IsAllLinear() {
		c.name(targets, modules, forward)
		return nil
	}
	names, mixed := pick(c.TargetModules.Names(), targets, forward)
	if mixed != "" {
		return fmt.Errorf("target_modules %s do not tell %q from others, and only some of them are feed-forward modules (model_type %q): set FeedforwardModules, or name them apart",
			c.TargetModules, mixed, modelType)
	}
	c.FeedforwardModules = peft.Modules(names...)
	return nil
}

// name sets both options to names that say the same as targets and forward.
func (c *IA3Config) name(targets, modules []site.Module, forward []bool) {
	names := peft.Shorten(targets, modules)
	picked, mixed := pick(names, targets, forward)
	if mixed != "" {
		names = paths(targets)
		picked, _ = pick(names, targets, forward)
	}
	c.TargetModules, c.FeedforwardModules = peft.Modules(names...), peft.Modules(picked...)
}

// pick returns the names all of whose targets are feed-forward. If these do not say of
// every target what it is, mixed is the path of one.
func pick(names []string, targets []site.Module, forward []bool) (picked []string, mixed string) {
	picked = []string{}
	for _, name := range names {
		some, every := false, true
		for i, m := range targets {
			if m.Path == name || strings.HasSuffix(m.Path, "."+name) {
				some, every = true, every && forward[i]
			}
		}
		if some && every {
			picked = append(picked, name)
		}
	}
	got, _, _ := ends(peft.Modules(picked...), targets) // names cannot fail
	for i, m := range targets {
		if got[i] != forward[i] {
			return picked, m.Path
		}
	}
	return picked, ""
}
