// Package parity proves that gopeft and the Python libraries say the same: its
// tests train, generate, save and load here, and ask torch, transformers and peft
// about the results. There is no code in it to use.
//
// The tests take what they need from environment variables and skip without it;
// .ci/parity.sh sets them all. docs/parity.md says what is compared and how closely.
package parity
