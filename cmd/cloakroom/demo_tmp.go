package main

import "github.com/spf13/cobra"

func demoCommand(func(string) string) *cobra.Command { return &cobra.Command{Use: "demo"} }
