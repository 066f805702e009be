import { HttpErrorResponse, HttpInterceptorFn } from "@angular/common/http";
import { inject } from "@angular/core";
import { Cloakroom } from "@cloakroom-bff/client/angular";
import { catchError, NEVER, throwError } from "rxjs";

/** If a call needs a stronger sign-in, the page goes there and comes back. */
export const stepUp: HttpInterceptorFn = (request, next) => {
  const { client } = inject(Cloakroom);
  return next(request).pipe(catchError((error: HttpErrorResponse) => (client.stepUp(error) ? NEVER : throwError(() => error))));
};
