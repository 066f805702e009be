import { provideHttpClient, withInterceptors } from "@angular/common/http";
import { bootstrapApplication } from "@angular/platform-browser";
import { provideRouter, withComponentInputBinding } from "@angular/router";
import { createClient } from "@cloakroom-bff/client";
import { cloakroomInterceptor, provideCloakroom, requireSession } from "@cloakroom-bff/client/angular";

import { App } from "./app";
import { Home } from "./home";
import { Orders } from "./orders";
import { stepUp } from "./step-up";

const pages = [
  { path: "", component: Orders },
  { path: "orders/:id", component: Orders },
];

bootstrapApplication(App, {
  providers: [
    provideCloakroom(createClient()),
    provideHttpClient(withInterceptors([cloakroomInterceptor, stepUp])),
    // The guard leads users who are not signed in to the sign-in, and back to the URL.
    provideRouter([{ path: "", component: Home, canActivate: [requireSession], children: pages }], withComponentInputBinding()),
  ],
}).catch(console.error);
