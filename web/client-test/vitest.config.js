import { compile } from "svelte/compiler";
import { defineConfig } from "vitest/config";

// Compiles Svelte components.
const svelte = {
  name: "svelte",
  transform: (code, id) => (id.endsWith(".svelte") ? compile(code, { generate: "client", filename: id }).js : undefined),
};

export default defineConfig({
  plugins: [svelte],
  resolve: { conditions: ["browser"] },
  test: { include: ["units/*.spec.js"], environment: "jsdom", server: { deps: { inline: [/svelte/, /@cloakroom-bff/] } }, testTimeout: 30_000 },
});
