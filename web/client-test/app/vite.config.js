import { cloakroom } from "@cloakroom-bff/client/vite";

export default {
  plugins: [cloakroom({ broker: process.env.BROKER })],
  clearScreen: false,
  build: { outDir: process.env.OUT, rolldownOptions: { input: ["index.html", "vue.html"] } },
};
