package train

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gopeft/gopeft/internal/atomicfile"
	"github.com/gopeft/gopeft/internal/safetensors"
)

// ErrNoCheckpoint is wrapped by the error of resuming from the last checkpoint where
// there is none that is complete.
var ErrNoCheckpoint = errors.New("no complete checkpoint")

const (
	checkpointPrefix = "checkpoint-"
	deletedPrefix    = ".deleted-"
	maxStateSize     = 1 << 30
)

func checkpointName(step int) string { return checkpointPrefix + strconv.Itoa(step) }

type checkpointFolder struct {
	step int
	path string
}

// listCheckpoints lists the folders of an output folder that are named as
// checkpoints, oldest first. A missing output folder has none.
func listCheckpoints(dir string) ([]checkpointFolder, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []checkpointFolder
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), checkpointPrefix)
		step, err := strconv.Atoi(digits)
		if ok && err == nil && e.IsDir() && checkpointName(step) == e.Name() {
			found = append(found, checkpointFolder{step, filepath.Join(dir, e.Name())})
		}
	}
	slices.SortFunc(found, func(a, b checkpointFolder) int { return cmp.Compare(a.step, b.step) })
	return found, nil
}

// LastCheckpoint returns the folder of the last complete checkpoint of an output
// folder. Without any the error wraps [ErrNoCheckpoint] and names those that are
// not complete.
func LastCheckpoint(outputDir string) (string, error) {
	found, err := listCheckpoints(outputDir)
	if err != nil {
		return "", fmt.Errorf("train: last checkpoint: %w", err)
	}
	var incomplete []error
	for _, c := range slices.Backward(found) {
		err := checkComplete(c.path)
		if err == nil {
			return c.path, nil
		}
		incomplete = append(incomplete, err)
	}
	return "", errors.Join(append([]error{fmt.Errorf("train: last checkpoint: %w in %q", ErrNoCheckpoint, outputDir)}, incomplete...)...)
}

// checkComplete reports what a checkpoint lacks.
func checkComplete(path string) error {
	if _, err := readState(path); err != nil {
		return err
	}
	file, err := safetensors.Open(filepath.Join(path, optimizerFile))
	if err != nil {
		return err
	}
	return file.Close()
}

// readState reads trainer_state.json.
func readState(path string) (*trainerState, error) {
	name := filepath.Join(path, stateFile)
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("train: checkpoint %q: %w", path, err)
	}
	if info.Size() > maxStateSize {
		return nil, fmt.Errorf("train: %s has %d bytes, more than any trainer wrote", name, info.Size())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("train: checkpoint: %w", err)
	}
	s, err := parseState(data)
	if err != nil {
		return nil, fmt.Errorf("train: %s: %w", name, err)
	}
	return s, nil
}

func parseState(data []byte) (*trainerState, error) {
	var s trainerState
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	switch {
	case s.Version != checkpointVersion:
		return nil, fmt.Errorf("version %d, want %d", s.Version, checkpointVersion)
	case s.Base.Fingerprint == "":
		return nil, errors.New("base.fingerprint is missing")
	case s.GlobalStep < 0 || s.Targets < 0 || s.Tokens < 0 || s.Pending.Targets < 0 || s.Pending.Tokens < 0:
		return nil, fmt.Errorf("negative counts: global_step %d, targets %d, tokens %d", s.GlobalStep, s.Targets, s.Tokens)
	}
	for i, entry := range s.LogHistory {
		if err := entry.validate(); err != nil {
			return nil, fmt.Errorf("log_history, entry %d: %w", i, err)
		}
	}
	return &s, nil
}

// leftover is what atomicfile leaves beside a checkpoint after a crash.
var leftover = regexp.MustCompile(`^(checkpoint-[0-9]+)\.(?:part|old)-[0-9a-f]{16}$`)

// cleanFolder repairs an output folder after a crash: folders that were being
// written or deleted go, and one that was being replaced comes back.
func cleanFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), deletedPrefix+checkpointPrefix) {
			err = os.RemoveAll(path)
		} else if m := leftover.FindStringSubmatch(e.Name()); m != nil {
			err = atomicfile.Recover(filepath.Join(dir, m[1]))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// earlierCheckpoints refuses the checkpoints of an earlier training, or returns them
// where they may be replaced.
func (t *Trainer) earlierCheckpoints() ([]string, error) {
	found, err := listCheckpoints(t.args.OutputDir)
	if err != nil {
		return nil, fmt.Errorf("train: output folder: %w", err)
	}
	if len(found) > 0 && !t.args.OverwriteOutputDir {
		return nil, fmt.Errorf("train: output folder %q has checkpoints of an earlier training, up to step %d: "+
			"set ResumeFromCheckpoint to %q to go on with it, OverwriteOutputDir to replace it, or choose another folder",
			t.args.OutputDir, found[len(found)-1].step, ResumeLast)
	}
	return paths(found), nil
}

func paths(found []checkpointFolder) []string {
	out := make([]string, len(found))
	for i, c := range found {
		out[i] = c.path
	}
	return out
}
