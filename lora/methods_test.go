package lora_test

import (
	"testing"

	"github.com/gopeft/gopeft/peft/pefttest"
)

// Adapters made by Python's peft mean the same here, and train the same.
func TestMethods(t *testing.T) { pefttest.Golden(t, "*-lora_*") }
