package models

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// labelFields is what config.json says of labels and of the head.
type labelFields struct {
	names         []string // by id; nil without
	architectures []string
	problem       string
}

func readLabels(configJSON []byte) (labelFields, error) {
	var l labelFields
	f, err := newFields(configJSON)
	if err != nil {
		return l, err
	}
	var byID map[string]string
	f.get("id2label", "an object of names by number", &byID)
	f.get("architectures", "a list of names", &l.architectures)
	l.problem = f.textOr("problem_type", "")
	if len(byID) > 0 {
		l.names = make([]string, len(byID))
	}
	for i := range l.names {
		name, ok := byID[fmt.Sprint(i)]
		if !ok {
			f.fail("id2label: wanted the ids 0 to %d, got none of %d", len(byID)-1, i)
			break
		}
		l.names[i] = name
	}
	return l, f.err()
}

// numbered are the names that transformers gives labels without.
func numbered(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("LABEL_%d", i)
	}
	return names
}

// maxLabels bounds what a configuration can ask for.
const maxLabels = 1 << 20

// wanted returns the labels that the options ask for, nil if they leave it open.
func (o ClassifierOptions) wanted(stored []string) ([]string, error) {
	n := len(o.Labels)
	switch {
	case n > 0 && o.NumLabels != 0 && o.NumLabels != n:
		return nil, fmt.Errorf("NumLabels is %d, but Labels has %d names", o.NumLabels, n)
	case n == 0 && o.NumLabels == 0:
		return nil, nil
	case n == 0:
		n = o.NumLabels
	}
	if n < 2 || n > maxLabels {
		return nil, fmt.Errorf("wanted 2 to %d labels, got %d (a single score, regression, is not supported)", maxLabels, n)
	}
	if len(o.Labels) == 0 {
		if len(stored) == n {
			return stored, nil
		}
		return numbered(n), nil
	}
	seen := map[string]int{}
	for i, name := range o.Labels {
		if name == "" {
			return nil, fmt.Errorf("label %d has no name", i)
		}
		if j, twice := seen[name]; twice {
			return nil, fmt.Errorf("labels %d and %d are both %q", j, i, name)
		}
		seen[name] = i
	}
	return slices.Clone(o.Labels), nil
}

// newLabels are the labels of a classifier that is made and not loaded.
func (o ClassifierOptions) newLabels(configJSON []byte) ([]string, error) {
	stored, err := readLabels(configJSON)
	if err != nil {
		return nil, err
	}
	labels, err := o.wanted(stored.names)
	if err != nil || labels != nil {
		return labels, err
	}
	if len(stored.names) < 2 {
		return nil, errors.New("how many labels? set Labels or NumLabels")
	}
	return stored.names, nil
}

// settle decides on the labels and whether the head is new.
func (o ClassifierOptions) settle(e encoder, src source) (labels []string, fresh bool, err error) {
	stored, err := readLabels(e.options().config.JSON)
	if err != nil {
		return nil, false, err
	}
	if labels, err = o.wanted(stored.names); err != nil {
		return nil, false, err
	}
	rows := headRows(e, src, o.PerToken)
	if rows == 0 || o.NewHead {
		if labels == nil {
			if rows == 0 {
				return nil, false, errors.New("the checkpoint has no classification head: set Labels or NumLabels for a new one")
			}
			return nil, false, errors.New("set Labels or NumLabels for the new head")
		}
		return labels, true, nil
	}
	if err := stored.fits(o.PerToken); err != nil {
		return nil, false, err
	}
	own := stored.names
	if len(own) != rows {
		own = numbered(rows)
	}
	if labels == nil {
		labels = own
	}
	if len(labels) != rows {
		return nil, false, fmt.Errorf("the checkpoint's head has %d labels, wanted %d: set NewHead to start a new one", rows, len(labels))
	}
	for i, name := range labels {
		if len(o.Labels) > 0 && name != own[i] && !slices.Equal(own, numbered(rows)) {
			return nil, false, fmt.Errorf("label %d is %q in the checkpoint, wanted %q: set NewHead to start a new head", i, own[i], name)
		}
	}
	return labels, false, nil
}

// headRows is the number of labels of the head that the checkpoint has, 0 without one.
func headRows(e encoder, src source, perToken bool) int {
	h := e.sequenceHead(2)
	if perToken {
		h = tokenHead(e.options(), 2)
	}
	last := h.modules[len(h.modules)-1]
	info, ok := src.Info(last.Weight())
	if ok && isQuantised(src, last.Weight(), info) {
		info, ok = src.Info(last.BiasName()) // codes have no rows
	}
	if !ok || len(info.Shape) == 0 {
		return 0
	}
	return info.Shape[0]
}

// fits refuses heads that were trained for something else.
func (l labelFields) fits(perToken bool) error {
	for _, name := range l.architectures {
		if perToken && strings.HasSuffix(name, "ForSequenceClassification") {
			return fmt.Errorf("the checkpoint is a %s, and PerToken is set: set NewHead to start a new head", name)
		}
		if !perToken && strings.HasSuffix(name, "ForTokenClassification") {
			return fmt.Errorf("the checkpoint is a %s: set PerToken, or NewHead to start a new head", name)
		}
		if strings.HasSuffix(name, "ForMultipleChoice") {
			return fmt.Errorf("the checkpoint is a %s, which is not supported: set NewHead to start a new head", name)
		}
	}
	if l.problem != "" && l.problem != "single_label_classification" {
		return fmt.Errorf("problem_type %q is not supported: wanted single_label_classification", l.problem)
	}
	return nil
}

// withLabels is config.json of the classifier.
func withLabels(configJSON []byte, class string, labels []string, perToken bool) ([]byte, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(configJSON, &values); err != nil {
		return nil, err
	}
	byID, byName := map[int]string{}, map[string]int{}
	for i, name := range labels {
		byID[i], byName[name] = name, i
	}
	kind := "SequenceClassification"
	if perToken {
		kind = "TokenClassification"
	}
	for name, value := range map[string]any{
		"id2label": byID, "label2id": byName, "architectures": []string{class + "For" + kind}, "problem_type": "single_label_classification",
	} {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		values[name] = data
	}
	if perToken {
		delete(values, "problem_type")
	}
	delete(values, "num_labels")
	return json.MarshalIndent(values, "", "  ")
}
