import { cloakroom } from "@cloakroom-bff/client/vite";
import vue from "@vitejs/plugin-vue";

export default { plugins: [vue(), cloakroom()] };
