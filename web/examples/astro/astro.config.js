import { defineConfig } from "astro/config";

// No setting is needed: Cloakroom allows each inline script of the build by its hash.
// `astro build` writes to dist/.
export default defineConfig({});
