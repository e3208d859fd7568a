package peft

import (
	"fmt"
	"slices"
	"strconv"
)

// Count is a number of trainable parameters out of all.
type Count struct {
	Trainable, All int64
}

// TrainableParameters counts the parameters of the trained adapters, and those of
// the base together with them, as peft's get_nb_trainable_parameters does.
func (pm *PeftModel) TrainableParameters() Count {
	var c Count
	for _, p := range pm.set.base.Parameters() {
		c.All += int64(p.Size())
	}
	pm.set.mu.RLock()
	defer pm.set.mu.RUnlock()
	for _, na := range pm.set.adapters {
		c.All += na.added()
	}
	for i, na := range pm.held {
		if !slices.Contains(pm.frozen, pm.active[i]) {
			c.Trainable += na.trainable()
		}
	}
	return c
}

// added is the number of parameters that the adapter adds to those of the base.
func (na *namedAdapter) added() int64 {
	n := na.trainable()
	for _, p := range na.layout.Params() {
		if p.InBase {
			n -= int64(p.fileSize())
		}
	}
	return n
}

// trainable is the number of trainable values, without what pads them (Param.FileShape).
func (na *namedAdapter) trainable() int64 {
	var n int64
	for _, p := range na.layout.Params() {
		n += int64(p.fileSize())
	}
	return n
}

// String is the line that peft's print_trainable_parameters prints:
// "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622".
func (c Count) String() string {
	return fmt.Sprintf("trainable params: %s || all params: %s || trainable%%: %.4f",
		thousands(c.Trainable), thousands(c.All), 100*float64(c.Trainable)/float64(c.All))
}

// PrintTrainableParameters prints [PeftModel.TrainableParameters] on standard output.
func (pm *PeftModel) PrintTrainableParameters() { fmt.Println(pm.TrainableParameters()) }

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
