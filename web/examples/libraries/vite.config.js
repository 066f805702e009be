import { defineConfig } from "vite";

export default defineConfig({
  build: {
    assetsInlineLimit: 0,
    rolldownOptions: { input: ["index.html", "emotion.html", "mui.html", "wasm.html", "origins.html"] },
  },
});
