package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/examples/quickstart/base"
	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/quant"
)

func TestRun(t *testing.T) {
	name := os.Getenv("GOPEFT_TEST_BACKEND")
	if name == "" {
		name = "go"
	}
	out := t.TempDir()
	var printed bytes.Buffer
	require.NoError(t, run(context.Background(), []string{"-backend", name, "-out", out, "-steps", "8", "-r", "4"}, &printed, io.Discard))
	text := printed.String()
	require.Contains(t, text, "quantisation statistics")
	if backend.IsXLA(backendtest.Open(t)) {
		require.Regexp(t, `planned\s+compiled\n`, text)
	} else {
		require.Contains(t, text, "does not say what its programs need")
	}
	found := regexp.MustCompile(`\nloss before=(\S+) after=(\S+)\nadapter (.+)\n$`).FindStringSubmatch(text)
	require.NotNil(t, found, text)
	before, err := strconv.ParseFloat(found[1], 64)
	require.NoError(t, err)
	after, err := strconv.ParseFloat(found[2], 64)
	require.NoError(t, err)
	require.Less(t, after, before/2)

	require.Equal(t, filepath.Join(out, "adapter"), found[3])
	model, err := options{backend: name}.load(context.Background())
	require.NoError(t, err)
	defer model.Close()
	_, err = peft.LoadAdapter(model, found[3])
	require.NoError(t, err)
}

// A folder that is quantised already is trained as it is.
func TestQuantisedFolder(t *testing.T) {
	name := os.Getenv("GOPEFT_TEST_BACKEND")
	if name == "" {
		name = "go"
	}
	whole, folder, out := t.TempDir(), filepath.Join(t.TempDir(), "nf4"), t.TempDir()
	require.NoError(t, os.CopyFS(whole, base.Files))
	_, err := models.Quantise(t.Context(), whole, folder, quant.NF4{DoubleQuant: true})
	require.NoError(t, err)
	losses := map[string]string{}
	for _, dir := range []string{whole, folder} {
		var printed bytes.Buffer
		require.NoError(t, run(t.Context(), []string{"-backend", name, "-model", dir, "-out", out, "-steps", "2", "-seq", "64", "-dropout", "0.1"}, &printed, io.Discard))
		losses[dir] = regexp.MustCompile(`loss before=\S+ after=\S+`).FindString(printed.String())
		require.NotEmpty(t, losses[dir])
	}
	require.Equal(t, losses[whole], losses[folder])
}

func TestBadFlags(t *testing.T) {
	dir := t.TempDir()
	_, err := parse([]string{"-out", dir, "more"}, io.Discard)
	require.EqualError(t, err, `unexpected argument "more"`)
	_, err = parse([]string{"-out", dir, "-data", filepath.Join(dir, "no.jsonl")}, io.Discard)
	require.ErrorIs(t, err, os.ErrNotExist)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o666))
	_, err = parse([]string{"-out", file}, io.Discard)
	require.ErrorContains(t, err, "-out: ")
}
